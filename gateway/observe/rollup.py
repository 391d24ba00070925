"""The account, added up: what metrics and the dashboard read.

Money is integer nano-US-dollars, so that the identity holds to the last digit for every record:

    counterfactual = spent + Σ avoided

`counterfactual` is the delivered tokens at the large model's price with no cache. What was avoided
is attributed outermost first: a hit or a join avoids all of it; else the cascade avoids the
difference between the two models' prices, and the prefix tree what was not prefilled, at the price
of the model that answered.

Durations go into geometric buckets, 24 to a decade: percentiles are right to 10 %, and every eighth
edge is a Prometheus bucket, so that both read one array.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.catalog import ModelCard
from gateway.observe.ledger import NOBODY, Ledger, Record

RECENT = 50
STEPS = 24
"""Buckets to a decade."""
_LEAST_S = 1e-5
_DECADES = 8
_SIZE = STEPS * _DECADES + 1

TECHNIQUES = ("exact", "semantic", "join", "prefix", "cascade")
_BY_ORIGIN = {"exact": "exact", "semantic": "semantic", "joined": "join"}


class Durations:
    """A histogram of seconds. Bucket i holds up to 10 µs · 10^(i/24); the last is open."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (_SIZE + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        step = math.ceil(STEPS * math.log10(seconds / _LEAST_S)) if seconds > _LEAST_S else 0
        self.counts[min(step, _SIZE)] += 1
        self.total += seconds

    def percentile(self, share: float) -> float | None:
        """The upper edge of the bucket in which the share is reached; None when empty."""
        wanted = share * sum(self.counts)
        if not wanted:
            return None
        seen = 0
        for step, count in enumerate(self.counts):
            seen += count
            if seen >= wanted:
                return edge_s(step)
        return None

    def cumulative(self) -> Iterable[tuple[float, int]]:
        """(upper edge in seconds, how many up to it) at every eighth edge, then infinity."""
        seen = 0
        for step, count in enumerate(self.counts[:_SIZE]):
            seen += count
            if step % 8 == 0:
                yield edge_s(step), seen
        yield math.inf, sum(self.counts)


def edge_s(step: int) -> float:
    return float(f"{_LEAST_S * 10 ** (step / STEPS):.3g}")


@dataclass(frozen=True, slots=True)
class Money:
    """One record in nano-US-dollars and tokens. `avoided` and `tokens` are by technique."""

    counterfactual: int
    spent: int
    avoided: Mapping[str, int]
    tokens: Mapping[str, int]


class Prices:
    """Nano-US-dollars a token, by model; the large model's are what everything is held against."""

    def __init__(self, cards: Iterable[ModelCard], large: ModelCard) -> None:
        self._by_model = {card.name: _nano(card) for card in cards}
        self._large = _nano(large)

    def account(self, record: Record) -> Money:
        usage = record.usage
        large_in, large_out = self._large
        whole = usage.prompt_tokens * large_in + usage.completion_tokens * large_out
        technique = _BY_ORIGIN.get(record.origin)
        if technique is not None:
            tokens = usage.prompt_tokens + usage.completion_tokens
            return Money(whole, 0, {technique: whole}, {technique: tokens})
        own_in, own_out = self._by_model.get(record.model, self._large)
        full = usage.prompt_tokens * own_in + usage.completion_tokens * own_out
        prefix = usage.cached_tokens * own_in
        moved = 0
        if (own_in, own_out) != self._large:
            moved = usage.prompt_tokens + usage.completion_tokens
        return Money(
            whole,
            full - prefix,
            {"cascade": whole - full, "prefix": prefix},
            {"cascade": moved, "prefix": usage.cached_tokens},
        )


def _nano(card: ModelCard) -> tuple[int, int]:
    """Dollars per million tokens are thousandths of a nano-dollar a token, times a million."""
    return round(card.price_in * 1000), round(card.price_out * 1000)


Who = tuple[str, str, str]
"""(tenant, model, origin)"""


class RollUp:
    """Sums over the ledger, brought up to date by `fold`. Owned by the event loop's thread."""

    def __init__(self, ledger: Ledger, prices: Prices) -> None:
        self._ledger = ledger
        self._prices = prices
        self.requests: Counter[tuple[str, str, str, int]] = Counter()
        self.prompt_tokens: Counter[Who] = Counter()
        self.completion_tokens: Counter[Who] = Counter()
        self.spent: Counter[tuple[str, str]] = Counter()
        self.avoided_tokens: Counter[tuple[str, str]] = Counter()
        self.avoided_nano_usd: Counter[tuple[str, str]] = Counter()
        self.lookups: Counter[tuple[str, str]] = Counter()
        self.request_s: dict[str, Durations] = {}
        self.ttft_s: dict[str, Durations] = {}
        self.tpot_s: dict[str, Durations] = {}
        self.recent: deque[Record] = deque(maxlen=RECENT)

    def fold(self) -> None:
        """Add what was booked since. About 5 µs a record, outside of any request."""
        for record in self._ledger.take():
            self._count(record)
            if record.status == 200:
                self._time(record)
                self._price(record)
            self.recent.append(record)

    def _count(self, record: Record) -> None:
        who = (record.tenant, record.model, record.origin)
        self.requests[(*who, record.status)] += 1
        if record.usage.prompt_tokens or record.usage.completion_tokens:
            self.prompt_tokens[who] += record.usage.prompt_tokens
            self.completion_tokens[who] += record.usage.completion_tokens
        for status in record.cache:
            result = "hit" if status.hit else "joined" if status.collapsed else status.forward
            self.lookups[(status.layer, result or "miss")] += 1

    def _time(self, record: Record) -> None:
        self.request_s.setdefault(record.origin, Durations()).add(record.seconds)
        if record.ttft_s is None:
            return
        self.ttft_s.setdefault(record.origin, Durations()).add(record.ttft_s)
        later = record.usage.completion_tokens - 1
        if later > 0 and record.origin not in _BY_ORIGIN and record.origin != NOBODY:
            each = (record.seconds - record.ttft_s) / later
            self.tpot_s.setdefault(record.model, Durations()).add(each)

    def _price(self, record: Record) -> None:
        money = self._prices.account(record)
        self.spent[(record.tenant, record.model)] += money.spent
        for technique, nano in money.avoided.items():
            self.avoided_nano_usd[(record.tenant, technique)] += nano
        for technique, tokens in money.tokens.items():
            self.avoided_tokens[(record.tenant, technique)] += tokens
