"""What an operator gets wrong: one clear message, exit status 2, no trace, and nothing listens.

A few of each kind, since each costs a process; the others are in test_configure.py and
test_loading.py among the unit tests.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkpoints import make_checkpoint
from tests.support.program import run_to_end


@pytest.fixture
def serve(tmp_path):
    """Runs `sluice serve` until it gives up: what it said."""

    def run(*arguments: str, config: str = "") -> str:
        (tmp_path / "sluice.toml").write_text(config, "utf-8")
        done = run_to_end(tmp_path, "serve", *arguments)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        return " ".join(done.stderr.split())

    return run


# --------------------------------------------------------------------------- settings


TYPOS = {
    "a key": (
        "[server]\nhost = '127.0.0.1'\nprot = 80\n",
        "sluice.toml:3",
        "server.prot",
        "'port'",
    ),
    "a type": ("[engine]\n\nmax_running = 'many'\n", "sluice.toml:3", "engine.max_running", "int"),
    "a plain key": ("[[tenants]]\nname='a'\nkeys=['sk-1']\n", ":3", "tenants[0].keys", "sha256sum"),
    "no toml": ("[server\nport = 1\n", "sluice.toml", "not valid TOML", "line 1"),
    "open to all": ("[server]\nhost = '0.0.0.0'\n", ":2", "server.host", "keys"),
}


@pytest.mark.parametrize("name", TYPOS)
def test_a_mistake_in_the_settings_is_told_by_line_key_and_remedy(serve, name) -> None:
    config, *told = TYPOS[name]
    said = serve(config=config)
    for words in told:
        assert words in said


def test_all_mistakes_are_told_at_once(serve) -> None:
    said = serve(config="[server]\nprot = 1\n[cascade]\npolicy = 'x'\n[engine]\npage_size = 1.5\n")
    for key in ("server.prot", "cascade.policy", "engine.page_size"):
        assert key in said


def test_a_settings_file_that_is_not_there_is_named(serve) -> None:
    assert "nowhere.toml" in serve("--config", "nowhere.toml")


def test_a_port_that_is_taken_is_told_before_models_are_loaded(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_to_end(tmp_path, "serve", "--port", port)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr


# --------------------------------------------------------------------------- checkpoints


def truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def rename_architecture(path: Path) -> None:
    file = path / "config.json"
    changes = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no directory": (shutil.rmtree, ("models.large.path", "config.json")),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), ("safetensors",)),
    "weights cut short": (truncate, ("model.safetensors",)),
    "another architecture": (rename_architecture, ("GPT2LMHeadModel", "LlamaForCausalLM")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_told_by_its_place_and_what_is_wrong(serve, tmp_path, name) -> None:
    damage, told = BROKEN[name]
    good = make_checkpoint(tmp_path / "good")
    broken = make_checkpoint(tmp_path / "broken", "llama")
    damage(broken)
    said = serve("--port", "0", "--small", str(good), "--large", str(broken))
    for words in ("broken", *told):
        assert words in said
