"""The account, added up: what metrics and the dashboard read.

Money is integer nano-US-dollars, so that the identity holds to the last digit for every answer:

    counterfactual + waste = spent + Σ avoided

`counterfactual` is the delivered tokens at the large model's price with no cache. What was avoided
is attributed outermost first: a hit or a join avoids all of it; else the cascade avoids the
difference between the two models' prices, and the prefix tree what was not prefilled, at the price
of the model that answered. One who joined a generation and inherited it, because whoever began it
hung up, pays for it all. `waste` was spent on what nobody was given: answers that broke off, and
what a layer threw away (`Trail.wasted`).

Tokens add up as well, each delivered one counted once:

    delivered = computed by the large model + Σ avoided

A hit or a join avoids all of them, the prefix tree what was not prefilled on either model, and the
cascade what the small model computed of the rest.

Durations go into geometric buckets, 24 to a decade: percentiles are right to 10 %, and every eighth
edge is a Prometheus bucket, so that both read one array.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from engine.contract import Usage
from gateway.catalog import ModelCard
from gateway.observe.ledger import NOBODY, NOTHING, Ledger, Record

OK = 200
RECENT = 1000
"""Calls that are kept for whoever asks why: about 1 KB each."""
STEPS = 24
"""Buckets to a decade."""
_LEAST_S = 1e-5
_DECADES = 8
_SIZE = STEPS * _DECADES + 1

TECHNIQUES = ("exact", "semantic", "join", "prefix", "cascade")
JOINED = "joined"
_BY_ORIGIN = {"exact": "exact", "semantic": "semantic", JOINED: "join"}


class Durations:
    """A histogram of seconds. Bucket i holds up to 10 µs · 10^(i/24); the last is open."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (_SIZE + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[step_of(seconds)] += 1
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


def step_of(seconds: float) -> int:
    """The bucket that a duration belongs to."""
    step = math.ceil(STEPS * math.log10(seconds / _LEAST_S)) if seconds > _LEAST_S else 0
    return min(step, _SIZE)


def edge_s(step: int) -> float:
    return float(f"{_LEAST_S * 10 ** (step / STEPS):.3g}")


@dataclass(frozen=True, slots=True)
class Money:
    """An answer, or a sum of them, in nano-US-dollars and tokens. `avoided` and `tokens` are by
    technique; `on_large` are delivered tokens that the large model computed."""

    counterfactual: int
    spent: int
    avoided: Mapping[str, int]
    tokens: Mapping[str, int]
    on_large: int = 0
    waste: int = 0
    wasted_tokens: int = 0


class PriceList(msgspec.Struct, frozen=True):
    """Nano-US-dollars a prompt and an answer's token, by model, as they are kept with what was
    booked at them (observe/journal.py)."""

    large: str
    nano: dict[str, tuple[int, int]]


class Prices:
    """What a token costs, by model; the large model's are what everything is held against."""

    def __init__(self, cards: Iterable[ModelCard], large: ModelCard) -> None:
        self._hold(PriceList(large.name, {card.name: _nano(card) for card in (*cards, large)}))

    @classmethod
    def of(cls, listed: PriceList) -> Prices:
        """The prices of another time."""
        prices = cls.__new__(cls)
        prices._hold(listed)
        return prices

    def _hold(self, listed: PriceList) -> None:
        self.listed = listed
        self._by_model, self._large_name = listed.nano, listed.large
        self._large = listed.nano[listed.large]

    def account(self, model: str, origin: str, usage: Usage) -> Money:
        large_in, large_out = self._large
        whole = usage.prompt_tokens * large_in + usage.completion_tokens * large_out
        technique = _BY_ORIGIN.get(origin)
        tokens = usage.prompt_tokens + usage.completion_tokens
        if technique is not None and not _inherited(origin, usage):
            return Money(whole, 0, {technique: whole}, {technique: tokens})
        own_in, own_out = self._by_model.get(model, self._large)
        full = usage.prompt_tokens * own_in + usage.completion_tokens * own_out
        prefix = usage.cached_tokens * own_in
        computed = tokens - usage.cached_tokens
        on_large = computed if self._is_large(model) else 0
        return Money(
            whole,
            full - prefix,
            {"cascade": whole - full, "prefix": prefix},
            {"cascade": computed - on_large, "prefix": usage.cached_tokens},
            on_large=on_large,
        )

    def account_waste(self, model: str, usage: Usage) -> Money:
        """What was computed and not delivered."""
        own_in, own_out = self._by_model.get(model, self._large)
        prompt = usage.prompt_tokens - usage.cached_tokens
        spent = prompt * own_in + usage.completion_tokens * own_out
        wasted = prompt + usage.completion_tokens
        return Money(0, spent, {}, {}, waste=spent, wasted_tokens=wasted)

    def _is_large(self, model: str) -> bool:
        """An unknown one is priced like the large model, and counted as it."""
        return model == self._large_name or model not in self._by_model


def _inherited(origin: str, usage: Usage) -> bool:
    return origin == JOINED and usage.computed_tokens > 0


def _nano(card: ModelCard) -> tuple[int, int]:
    """Dollars per million tokens are thousandths of a nano-dollar a token, times a million."""
    return round(card.price_in * 1000), round(card.price_out * 1000)


Who = tuple[str, str, str]
"""(tenant, model, origin)"""


@dataclass(slots=True)
class Sum:
    """Records of one (tenant, model, origin, status). Prices are linear in tokens, so that a sum
    is priced as one record would be, and a record costs four additions."""

    count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    inherited: Usage = NOTHING
    """What of it was joined and had to be paid all the same: priced unlike the rest."""
    wasted: dict[str, Usage] = field(default_factory=dict)
    """What layers threw away, by the model that computed it."""

    def add(self, record: Record) -> None:
        usage = record.usage
        self.count += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cached_tokens += usage.cached_tokens
        self.computed_tokens += usage.computed_tokens
        if _inherited(record.origin, usage):
            self.inherited = plus(self.inherited, usage)
        for waste in record.wasted:
            self._waste(waste.model, waste.usage)
        if record.cut_tokens:
            self._waste(record.model, Usage(0, record.cut_tokens))

    def absorb(self, other: Sum) -> None:
        """The records of `other`, too."""
        self.count += other.count
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens
        self.computed_tokens += other.computed_tokens
        self.inherited = plus(self.inherited, other.inherited)
        for model, usage in other.wasted.items():
            self._waste(model, usage)

    def _waste(self, model: str, usage: Usage) -> None:
        self.wasted[model] = plus(self.wasted.get(model, NOTHING), usage)

    def money(self, who: Who, prices: Prices) -> Iterator[tuple[Who, Money]]:
        """What it cost, by who computed it; `who` is (tenant, model, origin) of all of it."""
        tenant, model, origin = who
        if self.prompt_tokens or self.completion_tokens:
            for usage in self.usages():
                yield who, prices.account(model, origin, usage)
        for other, usage in self.wasted.items():
            yield (tenant, other, origin), prices.account_waste(other, usage)

    def usages(self) -> Iterator[Usage]:
        """Sums of tokens that are priced alike."""
        less = self.inherited
        yield Usage(
            self.prompt_tokens - less.prompt_tokens,
            self.completion_tokens - less.completion_tokens,
            self.cached_tokens - less.cached_tokens,
            self.computed_tokens - less.computed_tokens,
        )
        if less.computed_tokens:
            yield less


def plus(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.cached_tokens + b.cached_tokens,
        a.computed_tokens + b.computed_tokens,
    )


class RollUp:
    """Sums over the ledger, brought up to date by `fold`. Owned by the event loop's thread."""

    def __init__(
        self, ledger: Ledger, prices: Prices, also: Callable[[Record], None] | None = None
    ) -> None:
        """`also` hears of every record, when it is folded."""
        self._ledger = ledger
        self._prices = prices
        self._also = also
        self.sums: dict[tuple[str, str, str, int], Sum] = {}
        self.lookups: Counter[tuple[str, str]] = Counter()
        self.request_s: dict[str, Durations] = {}
        self.ttft_s: dict[str, Durations] = {}
        self.tpot_s: dict[str, Durations] = {}
        self.recent: deque[Record] = deque(maxlen=RECENT)

    def fold(self) -> None:
        """Add what was booked since. About 2 µs a record, outside of any request."""
        for record in self._ledger.take():
            self._count(record)
            if record.status == OK:
                self._time(record)
            self.recent.append(record)
            if self._also is not None:
                self._also(record)

    def money(self) -> Iterable[tuple[Who, Money]]:
        """What was spent and avoided, by who."""
        for (tenant, model, origin, _), one in self.sums.items():
            yield from one.money((tenant, model, origin), self._prices)

    def avoided(self) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
        """(tokens, nano-US-dollars) by (tenant, technique)."""
        tokens: Counter[tuple[str, str]] = Counter()
        nano: Counter[tuple[str, str]] = Counter()
        for (tenant, _, _), money in self.money():
            tokens.update({(tenant, by): count for by, count in money.tokens.items()})
            nano.update({(tenant, by): amount for by, amount in money.avoided.items()})
        return tokens, nano

    def spent(self) -> Counter[tuple[str, str]]:
        """Nano-US-dollars by (tenant, model)."""
        spent: Counter[tuple[str, str]] = Counter()
        for (tenant, model, _), money in self.money():
            spent[(tenant, model)] += money.spent
        return spent

    def wasted(self) -> Counter[tuple[str, str]]:
        """Nano-US-dollars by (tenant, model), which are part of what was spent."""
        wasted: Counter[tuple[str, str]] = Counter()
        for (tenant, model, _), money in self.money():
            wasted[(tenant, model)] += money.waste
        return wasted

    def _count(self, record: Record) -> None:
        key = (record.tenant, record.model, record.origin, record.status)
        one = self.sums.get(key)
        if one is None:
            one = self.sums[key] = Sum()
        one.add(record)
        for asked in lookups_of(record):
            self.lookups[asked] += 1

    def _time(self, record: Record) -> None:
        _add(self.request_s, record.origin, record.seconds)
        if record.ttft_s is None:
            return
        _add(self.ttft_s, record.origin, record.ttft_s)
        later = record.usage.completion_tokens - 1
        if later > 0 and record.origin not in _BY_ORIGIN and record.origin != NOBODY:
            _add(self.tpot_s, record.model, (record.seconds - record.ttft_s) / later)


def lookups_of(record: Record) -> list[tuple[str, str]]:
    """(layer, what came of it) of every layer that was asked."""
    return [
        (one.layer, "hit" if one.hit else "joined" if one.collapsed else one.forward or "miss")
        for one in record.cache
    ]


def _add(series: dict[str, Durations], name: str, seconds: float) -> None:
    durations = series.get(name)
    if durations is None:
        durations = series[name] = Durations()
    durations.add(seconds)
