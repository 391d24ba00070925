"""The moment: counts since the start and what is under way, for the page's tiles and tests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

from gateway.drain import Drain
from gateway.observe.ledger import Record
from gateway.observe.metrics import EngineState, EngineStates
from gateway.observe.rollup import Durations, RollUp

SHOWN = 50
"""Calls that are told with it."""


def summary(rollup: RollUp, engine: EngineStates, drain: Drain, part: str = "") -> dict[str, Any]:
    """Everything the page shows. Money in US dollars, times in milliseconds. `part`: whose numbers
    they are, where others have theirs."""
    counts = {key: one.count for key, one in rollup.sums.items()}
    tokens, nano_usd = rollup.avoided()
    return {
        "at": time.time(),
        "part": part,
        "inflight": drain.inflight,
        "draining": drain.draining,
        "requests": _by(counts, 2),
        "statuses": _by(counts, 3),
        "tenants": _by(counts, 0),
        "lookups": [[*names, count] for names, count in rollup.lookups.items()],
        "tokens_avoided": _by(tokens, 1),
        "usd_avoided": {by: nano * 1e-9 for by, nano in _by(nano_usd, 1).items()},
        "usd_wasted": sum(rollup.wasted().values()) * 1e-9,
        "usd_spent": sum(rollup.spent().values()) * 1e-9,
        "latency_ms": {origin: _shape(one) for origin, one in rollup.request_s.items()},
        "ttft_ms": {origin: _shape(one) for origin, one in rollup.ttft_s.items()},
        "engine": {name: _state(state) for name, state in engine().items()},
        "recent": [_line(record) for record in islice(reversed(rollup.recent), SHOWN)],
    }


def _by(counts: Mapping[tuple[Any, ...], int], place: int) -> dict[str, int]:
    """Sums over everything but one part of the key."""
    sums: dict[str, int] = {}
    for names, count in counts.items():
        sums[str(names[place])] = sums.get(str(names[place]), 0) + count
    return sums


def _shape(durations: Durations) -> dict[str, float]:
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: durations.percentile(share) for name, share in shares.items()}
    return {name: round(s * 1e3, 3) for name, s in found.items() if s is not None}


def _state(state: EngineState) -> dict[str, Any]:
    return {
        "running": state.running,
        "waiting": state.waiting,
        "preemptions": state.preemptions,
        "pages": dict(state.pages),
        "batch_sequences": state.batch_sequences,
        "batch_tokens": state.batch_tokens,
        "tokens_per_s": round(state.tokens_per_s, 1),
    }


def _line(record: Record) -> dict[str, Any]:
    """One decision, without content."""
    return {
        "at": record.at,
        "id": record.id,
        "tenant": record.tenant,
        "model": record.model,
        "origin": record.origin,
        "status": record.status,
        "prompt_tokens": record.usage.prompt_tokens,
        "completion_tokens": record.usage.completion_tokens,
        "ms": round(record.seconds * 1e3, 2),
        "why": [f"{one.layer}: {one.choice} ({one.reason})" for one in record.decisions],
        "cache": [
            f"{one.layer} {'hit' if one.hit else one.forward}{' joined' if one.collapsed else ''}"
            for one in record.cache
        ],
    }
