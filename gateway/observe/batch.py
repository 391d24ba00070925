"""What was booked between two savings, added up by five seconds: few rows for many requests.

A batch is made of records and of nothing else, so that what is folded as it happens and what is
read again from a journal after a crash go the same way (observe/keeper.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.observe.ledger import Record
from gateway.observe.rollup import OK, TECHNIQUES, Money, Prices, Sum, lookups_of, step_of

FINE_S = 5
"""The finest grain, in seconds: what a live chart shows."""
GRAINS_S = (FINE_S, 60, 3600, 86_400)
"""What is summed, by UTC time. The finest has no tenants: it is for charts, and short-lived."""

SumKey = tuple[int, str, str, str, int]
"""(start of five seconds, tenant, model, origin, status)"""

COUNTS = (
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "on_large_tokens",
    "wasted_tokens",
    "counterfactual",
    "spent",
    "waste",
)
AVOIDED = tuple(f"avoided_{by}" for by in TECHNIQUES)
TOKENS = tuple(f"tokens_{by}" for by in TECHNIQUES)
COLUMNS = (*COUNTS, *AVOIDED, *TOKENS)
"""The numbers of a row, all of them sums: money in nano-US-dollars, the rest in tokens."""

Row = tuple[str, str, str, int, tuple[int, ...]]
"""(tenant, model, origin, status, numbers by COLUMNS)"""


@dataclass(slots=True)
class Batch:
    """Owned by who fills it, then by who saves it."""

    sums: dict[SumKey, Sum] = field(default_factory=dict)
    lookups: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    """(start, layer, result) → how often"""
    times: Counter[tuple[int, str, str, int]] = field(default_factory=Counter)
    """(start, origin, kind, bucket) → how often; kind is "request" or "ttft" """

    def add(self, record: Record) -> None:
        at = int(record.at)
        at -= at % FINE_S
        key = (at, record.tenant, record.model, record.origin, record.status)
        one = self.sums.get(key)
        if one is None:
            one = self.sums[key] = Sum()
        one.add(record)
        for layer, result in lookups_of(record):
            self.lookups[(at, layer, result)] += 1
        if record.status == OK:
            self.times[(at, record.origin, "request", step_of(record.seconds))] += 1
            if record.ttft_s is not None:
                self.times[(at, record.origin, "ttft", step_of(record.ttft_s))] += 1

    def absorb(self, later: Batch) -> None:
        """Take in what came after this one, which could not be saved."""
        for key, one in later.sums.items():
            if key in self.sums:
                self.sums[key].absorb(one)
            else:
                self.sums[key] = one
        self.lookups.update(later.lookups)
        self.times.update(later.times)

    def rows(self, prices: Prices) -> Iterator[tuple[int, Row]]:
        """(start, row) of every sum: money at the prices that its records were booked at."""
        for (at, tenant, model, origin, status), one in self.sums.items():
            yield at, (tenant, model, origin, status, (one.count, *[0] * (len(COLUMNS) - 1)))
            if status == OK:
                tokens = (0, one.prompt_tokens, one.completion_tokens, one.cached_tokens)
                numbers = (*tokens, *[0] * (len(COLUMNS) - len(tokens)))
                yield at, (tenant, model, origin, status, numbers)
            for who, money in one.money((tenant, model, origin), prices):
                yield at, (*who, status, _numbers(money))

    def __bool__(self) -> bool:
        return bool(self.sums)


def _numbers(money: Money) -> tuple[int, ...]:
    """By COLUMNS, without what a sum counts itself."""
    return (
        0,
        0,
        0,
        0,
        money.on_large,
        money.wasted_tokens,
        money.counterfactual,
        money.spent,
        money.waste,
        *[money.avoided.get(by, 0) for by in TECHNIQUES],
        *[money.tokens.get(by, 0) for by in TECHNIQUES],
    )


def plus(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))
