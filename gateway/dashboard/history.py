"""The course of things: what the charts show, step by step over a span.

The account's part comes from the book (observe/book.py), which has it also from before this
process. The engine's part is not in the account: `Pulse` looks at it every two seconds and keeps
an hour in memory, because a gauge that nobody looked at is gone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.observe.batch import COLUMNS, FINE_S
from gateway.observe.book import Book, Counted, Query
from gateway.observe.metrics import EngineState, EngineStates
from gateway.observe.rollup import TECHNIQUES, edge_s

HOUR_S, DAY_S = 3600, 86_400
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LOOK_EVERY_S = 2.0
KEPT_LOOKS = int(HOUR_S / LOOK_EVERY_S)
MOST_POINTS = 450
BUSIEST = 50
"""Tenants that are told, those with most requests first."""
_ANSWERED = ("hit", "joined")


@dataclass(frozen=True, slots=True)
class Span:
    """How far back, from which sums, in which steps; in seconds."""

    length_s: int
    grain_s: int
    step_s: int

    def query(self, now: int) -> Query:
        """Whole steps; the last one is under way."""
        end = now - now % self.step_s + self.step_s
        return Query(end - self.length_s, end, self.grain_s, self.step_s)


SPANS: Mapping[str, Span] = {
    "15m": Span(900, FINE_S, 5),
    "1h": Span(HOUR_S, FINE_S, 20),
    "24h": Span(DAY_S, 60, 300),
    "7d": Span(7 * DAY_S, HOUR_S, HOUR_S),
    "90d": Span(90 * DAY_S, DAY_S, DAY_S),
}


def history_of(book: Book, span: Span, now: int) -> dict[str, Any]:
    """Columns over `at` (UTC seconds): money in US dollars, times in milliseconds. Raises
    BookFault."""
    query = span.query(now)
    at = list(range(query.start, query.end, query.step_s))
    place = {start: index for index, start in enumerate(at)}
    sums = _sums(book, query, place)
    times = book.times(query)
    return {
        "step_s": query.step_s,
        "at": at,
        "requests": sums["requests"],
        "spent_usd": _usd(sums["spent"]),
        "wasted_usd": _usd(sums["waste"]),
        "delivered_tokens": _added(sums["prompt_tokens"], sums["completion_tokens"]),
        "large_tokens": sums["on_large_tokens"],
        "tokens": {by: sums[f"tokens_{by}"] for by in TECHNIQUES},
        "usd": {by: _usd(sums[f"avoided_{by}"]) for by in TECHNIQUES},
        "layers": _layers(book.lookups(query), place),
        "latency_ms": _percentiles(times, place),
        "whole_span": _shapes(times),
        "tenants": _tenants(book, query),
    }


def _sums(book: Book, query: Query, place: Mapping[int, int]) -> dict[str, list[int]]:
    sums = {name: [0] * len(place) for name in COLUMNS}
    for line in book.usage(query):
        for name, number in zip(COLUMNS, line.numbers, strict=True):
            sums[name][place[line.at]] = number
    return sums


def _usd(nano: Iterable[int]) -> list[float]:
    return [number * 1e-9 for number in nano]


def _added(one: Iterable[int], other: Iterable[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _layers(counts: Iterable[Counted], place: Mapping[int, int]) -> dict[str, dict[str, list[int]]]:
    """How often each layer was asked and could answer. A join is told of the exact cache's look-up
    that became one."""
    found: dict[str, dict[str, list[int]]] = {}
    for one in counts:
        layer, result = one.names
        layers = [layer, "join"] if layer == "exact" else [layer]
        for name in layers:
            wanted = "joined" if name == "join" else "hit"
            columns = found.setdefault(
                name, {"asked": [0] * len(place), "answered": [0] * len(place)}
            )
            if name != "join" or result != "hit":
                columns["asked"][place[one.at]] += one.count
            if result == wanted:
                columns["answered"][place[one.at]] += one.count
    return found


def _percentiles(
    counts: Iterable[Counted], place: Mapping[int, int]
) -> dict[str, dict[str, list[float | None]]]:
    """Of whole answers, by origin and step."""
    buckets: defaultdict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for one in counts:
        origin, kind, bucket = one.names
        if kind == "request":
            buckets[(origin, place[one.at])][int(bucket)] += one.count
    found: dict[str, dict[str, list[float | None]]] = {}
    for (origin, index), held in buckets.items():
        columns = found.setdefault(origin, {name: [None] * len(place) for name in ("p50", "p95")})
        for name, column in columns.items():
            column[index] = _ms(held, SHARES[name])
    return found


def _shapes(counts: Iterable[Counted]) -> dict[str, dict[str, Any]]:
    """By origin over the whole span: how many, percentiles of answers and first tokens."""
    buckets: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for one in counts:
        origin, kind, bucket = one.names
        buckets[(origin, kind)][int(bucket)] += one.count
    found: dict[str, dict[str, Any]] = {}
    for (origin, kind), held in buckets.items():
        told = found.setdefault(origin, {"count": 0})
        if kind == "request":
            told["count"] = held.total()
        told[kind] = {name: _ms(held, share) for name, share in SHARES.items()}
    return found


def _ms(held: Counter[int], share: float) -> float:
    """The upper edge of the bucket in which the share is reached."""
    wanted, seen = share * held.total(), 0
    for bucket in sorted(held):
        seen += held[bucket]
        if seen >= wanted:
            return round(edge_s(bucket) * 1e3, 3)
    raise AssertionError("the whole is always reached")


def _tenants(book: Book, query: Query) -> list[dict[str, Any]]:
    """Sums by tenant. The finest sums have none: then by the minute, for a span that is longer by
    less than two."""
    grain_s = max(60, query.grain_s)
    plain = Query(query.start, query.end, grain_s, 0, ("tenant",))
    told: list[dict[str, Any]] = []
    for line in book.usage(plain):
        sums = dict(zip(COLUMNS, line.numbers, strict=True))
        told.append(
            {
                "tenant": line.names[0],
                "requests": sums["requests"],
                "tokens": sums["prompt_tokens"] + sums["completion_tokens"],
                "spent_usd": sums["spent"] * 1e-9,
                "avoided_usd": sum(sums[f"avoided_{by}"] for by in TECHNIQUES) * 1e-9,
            }
        )
    return sorted(told, key=lambda one: -one["requests"])[:BUSIEST]


class Pulse:
    """What the engine was doing, looked at every so often. Owned by the event loop's thread."""

    def __init__(self, engine: EngineStates, wall: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._wall = wall
        self._looks: deque[tuple[float, Mapping[str, EngineState]]] = deque(maxlen=KEPT_LOOKS)

    def look(self) -> None:
        self._looks.append((self._wall(), dict(self._engine())))

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def told(self, span: Span, now: int) -> dict[str, Any]:
        """By model, columns over `at`; at most the last hour."""
        looks = [look for look in self._looks if look[0] >= now - span.length_s]
        every = max(1, math.ceil(len(looks) / MOST_POINTS))
        looks = looks[::every]
        models = sorted({name for _, states in looks for name in states})
        return {
            "at": [round(at, 1) for at, _ in looks],
            "models": {
                name: _columns([states.get(name) for _, states in looks]) for name in models
            },
        }


def _columns(states: list[EngineState | None]) -> dict[str, list[float | None]]:
    names = ("running", "waiting", "batch_sequences", "batch_tokens", "tokens_per_s")
    columns: dict[str, list[float | None]] = {
        name: [None if one is None else round(getattr(one, name), 1) for one in states]
        for name in names
    }
    columns["pages_used"] = [None if one is None else _used(one.pages) for one in states]
    return columns


def _used(pages: Mapping[str, int]) -> int:
    """Pages that hold something: a running sequence's, or the prefix tree's."""
    return pages.get("running", 0) + pages.get("cached", 0)
