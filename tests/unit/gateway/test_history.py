"""The dashboard's charts say what the account says, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engine.contract import CacheStatus, Usage
from gateway.catalog import ModelCard
from gateway.dashboard.history import SPANS, Pulse, history_of
from gateway.observe.batch import Batch
from gateway.observe.book_sqlite import SqliteBook
from gateway.observe.ledger import Record
from gateway.observe.metrics import EngineState
from gateway.observe.rollup import Prices
from gateway.settings import LedgerSettings

SMALL, LARGE = ModelCard("small", "", None, 0.1, 0.4), ModelCard("large", "", None, 1.0, 4.0)
PRICES = Prices([SMALL, LARGE], LARGE)
NOW = 20_000 * 86_400 + 43_212
MISS, HIT = CacheStatus("exact", forward="miss"), CacheStatus("exact", hit=True)
JOINED = CacheStatus("exact", forward="miss", collapsed=True)


def booked(ago_s: float, origin: str, cache: CacheStatus, **more: Any) -> Record:
    plain: dict[str, Any] = {
        "at": NOW - ago_s, "id": "r", "tenant": "t", "model": "large", "origin": origin,
        "status": 200, "usage": Usage(10, 4), "seconds": 0.5, "ttft_s": 0.1, "cache": [cache],
        "decisions": [],
    }  # fmt: skip
    return Record(**(plain | more))


@pytest.fixture
def book() -> Iterator[SqliteBook]:
    opened = SqliteBook(None, LedgerSettings())
    opened.open()
    batch = Batch()
    for record in (
        booked(1, "exact", HIT, seconds=0.001),
        booked(2, "large", MISS),
        booked(3, "joined", JOINED),
        booked(600, "large", MISS, seconds=2.0),
        booked(40_000, "large", MISS, tenant="old"),
        booked(1, "none", MISS, status=429, usage=Usage(0, 0), tenant="t"),
    ):
        batch.add(record)
    opened.save(batch, PRICES, None)
    yield opened
    opened.close()


@pytest.mark.parametrize("span", sorted(SPANS))
def test_every_span_has_whole_steps_up_to_now_and_equal_columns(
    book: SqliteBook, span: str
) -> None:
    told = history_of(book, SPANS[span], NOW)
    at = told["at"]
    assert at[-1] <= NOW < at[-1] + told["step_s"]
    columns = [told["requests"], *told["tokens"].values(), *told["usd"].values()]
    columns += [column for layer in told["layers"].values() for column in layer.values()]
    columns += [column for origin in told["latency_ms"].values() for column in origin.values()]
    assert {len(column) for column in columns} == {len(at)}
    assert sum(told["requests"]) == (5 if span in {"15m", "1h"} else 6)


def test_a_hit_and_a_join_are_each_told_of_who_was_asked(book: SqliteBook) -> None:
    layers = history_of(book, SPANS["1h"], NOW)["layers"]
    total = {(name, what): sum(one[what]) for name, one in layers.items() for what in one}
    assert total[("exact", "asked")] == 5
    assert total[("exact", "answered")] == 1
    assert total[("join", "asked")] == 4, "a hit never comes to the join"
    assert total[("join", "answered")] == 1


def test_what_was_delivered_is_what_large_computed_and_what_was_avoided(book: SqliteBook) -> None:
    told = history_of(book, SPANS["24h"], NOW)
    avoided = sum(sum(column) for column in told["tokens"].values())
    assert sum(told["delivered_tokens"]) == sum(told["large_tokens"]) + avoided
    assert sum(told["usd"]["exact"]) == pytest.approx(10e-6 + 16e-6)


def test_percentiles_are_those_of_the_whole_span(book: SqliteBook) -> None:
    shapes = history_of(book, SPANS["15m"], NOW)["whole_span"]
    assert shapes["large"]["count"] == 2
    assert shapes["large"]["request"]["p50"] == pytest.approx(500, rel=0.1)
    assert shapes["large"]["request"]["p99"] == pytest.approx(2000, rel=0.1)
    assert shapes["exact"]["ttft"]["p50"] == pytest.approx(100, rel=0.1)


def test_tenants_are_told_the_busiest_first(book: SqliteBook) -> None:
    tenants = history_of(book, SPANS["24h"], NOW)["tenants"]
    assert [(one["tenant"], one["requests"]) for one in tenants] == [("t", 5), ("old", 1)]


def test_the_engines_pulse_is_thinned_and_forgets_what_is_before_the_span() -> None:
    now = [float(NOW)]
    states = {"small": EngineState(running=1, pages={"free": 5, "running": 2, "cached": 3})}
    pulse = Pulse(lambda: states, wall=lambda: now[0])
    pulse.look()
    for _ in range(1000):
        now[0] += 2
        pulse.look()
    states["large"] = EngineState(waiting=7)
    now[0] += 2
    pulse.look()
    told = pulse.told(SPANS["1h"], int(now[0]))
    assert 300 < len(told["at"]) <= 501
    assert told["models"]["small"]["pages_used"][0] == 5
    assert pulse.told(SPANS["15m"], int(now[0]) + 1000)["at"] == []


def test_a_model_that_came_later_has_gaps_before() -> None:
    states: dict[str, EngineState] = {}
    pulse = Pulse(lambda: states, wall=lambda: float(NOW))
    pulse.look()
    states["large"] = EngineState(waiting=7)
    pulse.look()
    assert pulse.told(SPANS["15m"], NOW)["models"]["large"]["waiting"] == [None, 7]
