# Each target works on a fresh clone: what it needs is installed into .venv first.
#   PYTHON=python3.12 make run      another interpreter (3.11 or newer)
#   TORCH='torch==2.11.0' make run  another PyTorch
#   CONFIG=sluice.toml make run     your own settings

PYTHON ?= python3
TORCH ?= torch==2.13.0
CONFIG ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test gpu-test check fmt bench demo-smoke clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.run  ## what serving needs, into .venv
run: .venv/.run  ## serve the bundled models on http://127.0.0.1:8080
	@exec $(BIN)/sluice serve $(if $(CONFIG),--config $(CONFIG))

test: .venv/.dev  ## every test that this machine can run
	$(BIN)/pytest --durations=15 --cov --cov-report=term:skip-covered

gpu-test:  ## every GPU kernel against its twin, on a machine with a GPU: PYTHON needs torch, triton, pytest
	NEEDS_GPU=1 $(PYTHON) -m pytest -q tests/gpu

check: .venv/.dev  ## format, lint, types, import rules, unit and contract tests: about a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -m "not slow" tests/unit tests/contract

fmt: .venv/.dev  ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.dev  ## the tables of the README (about half an hour; wants an idle machine)
	$(BIN)/python -m bench.radix
	$(BIN)/python -m bench.eviction
	$(BIN)/python -m bench.gateway
	$(BIN)/python -m bench.gateway_semantic
	$(BIN)/python -m bench.semantic_speed --entries 1000,10000,100000
	$(BIN)/python -m bench.redis
	$(BIN)/python -m bench.tenants
	$(BIN)/python -m bench.engine

demo-smoke: .venv/.dev  ## train the bundled models' recipe for a few steps on a scrap of data
	$(BIN)/python -m demo.train --smoke

clean:  ## remove .venv, caches and the embedded state
	rm -rf .venv .sluice .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Sluice needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

# PyTorch first and by itself, so that a CPU build which is already there, or which TORCH names, stays.
.venv/.run: pyproject.toml | .venv/bin/python
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install '$(TORCH)'
	$(BIN)/python -m pip install -e '.[fast,semantic]'
	@touch $@

# What the tests want beside Python packages is unpacked here, not installed: without it, or without
# Debian's apt, the tests that want it are skipped and say so.
.venv/.dev: pyproject.toml | .venv/.run .redis7 .prometheus .chromium
	$(BIN)/python -m pip install -e '.[fast,semantic,traces,dev,peers,train]'
	@touch $@

.redis7:
	-@sh tests/support/get_redis.sh > /dev/null || echo "There is no Redis of the tests' own."

.prometheus:
	-@sh tests/support/get_prometheus.sh > /dev/null || echo "There is no Prometheus of the tests' own."

.chromium:
	-@sh tests/support/get_chromium.sh > /dev/null || echo "There is no Chromium of the tests' own."
