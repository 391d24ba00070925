"""The layer that asks whether there is money and rate for what is about to be computed.

It stands inside the caches, around whoever asks a model: a hit costs a request and no tokens, and
of identical requests in flight one pays, the one whose generation it is.

Before: tokens by estimate (`Worth.tokens`, a fair guess: it is corrected, and a minute is short),
money by an upper bound (`Worth.most`: a byte of text is a token at most, an answer is as long as it
may be, and who computes it is told so where nothing else bounds it), so that all that runs at one
time cannot overspend. After: what `End` says, at the prices of who answered, and what was thrown
away on the way (`Trail.wasted`). Where tenants of a group share a generation and who began it
leaves, the heir reserves before the first is let go (`_Bill.pass_on`): budget and account always
charge the same one.

An answer that was cut, or failed, is settled by what was produced, as whoever computed it told the
trail (`Trail.cut`), be it before its first token: money, tokens and the account by one number.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cascade.price import estimate_prompt_tokens
from engine.contract import (
    Answer,
    Answerer,
    Call,
    End,
    Event,
    Start,
    Trail,
    Usage,
)
from gateway.catalog import LONGEST_UNKNOWN, ModelCard
from gateway.observe.rollup import Prices
from gateway.tenants.budgets import Budgets
from gateway.tenants.limits import Limits, Tokens
from gateway.tenants.pot import Ticket
from gateway.tenants.roster import Roster
from gateway.verify.rules import AUTO

MESSAGE_TOKENS = 16
"""What a template puts around a message, at most."""
TEMPLATE_TOKENS = 64
NOT_TEXT_TOKENS = 16_384
"""What an image is counted as, at most, whatever its bytes."""
ALONE = frozenset({"tenant", "user"})
"""Scopes in which no other tenant shares a generation, and none inherits it."""
GUESSED_ANSWER = 512
"""For the rate, where a request does not say how long its answer may be."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What a call may need. `most` in nano-US-dollars; `tokens` are an estimate."""

    tokens: int
    most: int


class Appraiser:
    """From a call to its worth, by the cards of the models that may answer it."""

    def __init__(
        self,
        cards: Mapping[str, ModelCard],
        cascade: Iterable[str],
        fallbacks: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        """`cascade`: the models that may be asked one after the other for `auto`. `fallbacks`:
        who answers in a model's place where it fails, by its name."""
        chains = {name: (name, *fallbacks.get(name, ())) for name in cards}
        either = {name: tuple(cards[one] for one in chain) for name, chain in chains.items()}
        self._turns: dict[str, tuple[tuple[ModelCard, ...], ...]]
        self._turns = {name: (models,) for name, models in either.items()}
        self._turns[AUTO] = tuple(either[name] for name in dict.fromkeys(cascade))

    def worth(self, call: Call) -> Worth:
        size, overhead = _bytes_of(call)
        asked = call.max_tokens
        tokens = estimate_prompt_tokens(call) + call.n * (
            asked if asked is not None else GUESSED_ANSWER
        )
        turns = self._turns.get(call.model, ())
        most = sum(max(_most(call, size + overhead, card) for card in turn) for turn in turns)
        return Worth(tokens, most)


def _most(call: Call, size: int, card: ModelCard) -> int:
    """What a prompt of `size` bytes and its answer cost at most, in nano-US-dollars."""
    answer = call.n * _longest(call, card)
    prompt = size if card.context is None else min(size, card.context)
    return round(prompt * card.price_in * 1000) + round(answer * card.price_out * 1000)


def _longest(call: Call, card: ModelCard) -> int:
    """Tokens of one answer at most, which is what makes it end there: the request's own bound, the
    model's context, or the bound that is sent in their place (`Call.longest`)."""
    if card.context is None:
        return LONGEST_UNKNOWN if call.max_tokens is None else call.max_tokens
    return card.context if call.max_tokens is None else min(card.context, call.max_tokens)


def _bytes_of(call: Call) -> tuple[int, int]:
    """(bytes of what is asked, tokens that a template adds at most). Token ids count one each."""
    if call.kind == "text":
        prompt = call.prompt
        return (len(prompt.encode()) if isinstance(prompt, str) else len(prompt)), 1
    size = sum(
        len(part.body.encode()) if part.kind == "text" else NOT_TEXT_TOKENS
        for message in call.messages
        for part in message.parts
    )
    size += sum(
        len(tool.name.encode()) + len(tool.arguments.encode())
        for message in call.messages
        for tool in message.tool_calls
    )
    size += len((call.tools or "").encode()) + len((call.response_format or "").encode())
    return size, TEMPLATE_TOKENS + MESSAGE_TOKENS * len(call.messages)


class SpendLayer:
    """Reserves and settles. A tenant without such limits gets the inner answer itself."""

    def __init__(
        self,
        inner: Answerer,
        *,
        roster: Roster,
        limits: Limits,
        budgets: Budgets,
        appraiser: Appraiser,
        prices: Prices,
    ) -> None:
        self._inner = inner
        self._roster = roster
        self._limits = limits
        self._budgets = budgets
        self._appraiser = appraiser
        self._prices = prices

    def __call__(self, call: Call, trail: Trail) -> Answer:
        tenant = self._roster[trail.tenant]
        limits = (tenant.tpm, tenant.budget_usd_day, tenant.budget_usd_month)
        if tenant.cache_scope in ALONE and not any(one is not None for one in limits):
            return self._inner(call, trail)
        return self._paid(call, trail)

    async def _paid(self, call: Call, trail: Trail) -> Answer:
        bill = _Bill(call.model, trail, self._prices, self._hold, self._appraiser.worth(call))
        try:
            await bill.reserve()
            answer = self._inner(call, trail)
            try:
                async for event in answer:
                    bill.see(event)
                    yield event
            finally:
                await answer.aclose()
        finally:
            bill.settle(Usage(0, 0))

    async def _hold(self, tenant: str, worth: Worth) -> _Hold:
        """Raises TooMany where the tenant has not got it."""
        tokens = await self._limits.admit_tokens(tenant, worth.tokens)
        try:
            ticket = await self._budgets.reserve(self._roster[tenant], worth.most)
        except BaseException:
            if tokens is not None:
                tokens.settle(0)
            raise
        return _Hold(tenant, tokens, ticket)


@dataclass(frozen=True, slots=True)
class _Hold:
    """What one tenant has reserved for an answer. Settled once."""

    tenant: str
    tokens: Tokens | None
    ticket: Ticket

    def settle(self, tokens: int, nano: int) -> None:
        if self.tokens is not None:
            self.tokens.settle(tokens)
        self.ticket.settle(nano)


class _Bill:
    """What one answer costs, and who pays it (it is the trail's purse). Settled once: at its `End`,
    or, when it was cut, by the waste."""

    def __init__(
        self,
        model: str,
        trail: Trail,
        prices: Prices,
        hold: Callable[[str, Worth], Awaitable[_Hold]],
        worth: Worth,
    ) -> None:
        self._model = model
        self._origin = model
        self._trail = trail
        self._wasted_before = len(trail.wasted)
        self._prices = prices
        self._reserve = hold
        self._worth = worth
        self._held: _Hold | None = None
        self._settled = False

    async def reserve(self) -> None:
        """In the name of who pays, who may change while a store is asked. Raises TooMany."""
        self._trail.purse = self
        while True:
            held = await self._reserve(self._trail.tenant, self._worth)
            if held.tenant == self._trail.tenant:
                self._held = held
                return
            held.settle(0, 0)

    async def pass_on(self, heir: str) -> bool:
        """See `Purse`. Before anything is held, `reserve` will see the new name."""
        if self._settled or self._held is None:
            return not self._settled
        held = await self._reserve(heir, self._worth)
        if self._settled:
            held.settle(0, 0)
            return False
        self._held.settle(0, 0)
        self._held = held
        return True

    def see(self, event: Event) -> None:
        """Called before the event is handed on, so that no `End` is seen by a caller unpaid."""
        if isinstance(event, Start):
            self._model, self._origin = event.model, event.origin
        elif isinstance(event, End):
            self.settle(event.usage)

    def settle(self, usage: Usage) -> None:
        """`usage`: of what was answered to its end; beside it, what was computed in vain."""
        if self._settled:
            return
        self._settled = True
        if self._held is None:
            return
        wasted = self._trail.wasted[self._wasted_before :]
        tokens = sum(_computed(one) for one in (usage, *(waste.usage for waste in wasted)))
        spent = self._prices.account(self._model, self._origin, usage).spent
        spent += sum(self._prices.account_waste(w.model, w.usage).spent for w in wasted)
        self._held.settle(tokens, spent)


def _computed(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens
