"""How often and how many at a time: requests and tokens per minute, and requests in flight.

A rate is a sliding window: one gateway's own (tenants/window.py) or, where gateways share a Redis,
one that they count together (tenants/shared_rates.py, tenants/shared_slots.py). To be let in is a
matter of counters in memory either way; what gateways share is leased before that, if it is used
up.

Tokens are an estimate when they are let in and are corrected when the answer has ended: what a
minute's tokens really were holds back who comes next, not who has been let in.

What a limit refuses is not counted: who retries as told is let in as soon as the window allows. All
else is, also what cannot be read or may not be asked: else a flood of nonsense would be free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from engine.contract import TooMany
from gateway.errors import Headers
from gateway.settings import Tenant
from gateway.tenants.shared_rates import SharedWindow
from gateway.tenants.shared_slots import SharedSlots, Slots
from gateway.tenants.window import WINDOW_S, Window

TURNS = 3
"""How often what was leased may be taken by somebody else before it was used."""


class TooLarge(TooMany):
    """400, since clients try a 429 again, and no waiting lets this request in. Still this tenant's
    own: others who share an answer may have the room (cache/join.py)."""

    status = 400
    kind = "invalid_request_error"


class Shared(Protocol):
    """Where gateways share limits: what makes the counters that they count with together."""

    def window(self, name: str, limit: int, now: float) -> SharedWindow: ...

    def slots(self, name: str, limit: int) -> SharedSlots: ...


@dataclass(slots=True)
class _Standing:
    requests: Window | SharedWindow | None = None
    tokens: Window | SharedWindow | None = None
    slots: Slots | SharedSlots | None = None
    inflight: int = 0

    @property
    def limited(self) -> bool:
        return any(one is not None for one in (self.requests, self.tokens, self.slots))

    def needs(self, tokens: int) -> list[tuple[SharedWindow | SharedSlots, int]]:
        """What is shared, and how much of it the next request takes."""
        wanted = ((self.tokens, tokens),) if tokens else ((self.requests, 1), (self.slots, 1))
        return [(one, cost) for one, cost in wanted if isinstance(one, SharedWindow | SharedSlots)]


class Limits:
    """Every tenant's standing. Owned by the event loop's thread."""

    def __init__(
        self,
        tenants: Iterable[Tenant],
        clock: Callable[[], float] = time.monotonic,
        shared: Shared | None = None,
    ) -> None:
        self._clock = clock
        self._shared = shared
        self._standing: dict[str, _Standing] = {}
        self.replace(tenants)

    def replace(self, tenants: Iterable[Tenant]) -> None:
        """Hold tenants to new limits. What they have in flight and used this minute still counts;
        a tenant whose limits were lifted keeps its standing until its last request has left."""
        now = self._clock()
        limited = {
            tenant.name: tenant
            for tenant in tenants
            if tenant.rpm or tenant.tpm or tenant.max_concurrent
        }
        for name, standing in list(self._standing.items()):
            if name in limited:
                continue
            standing.requests = standing.tokens = standing.slots = None
            if not standing.inflight:
                del self._standing[name]
        for name, tenant in limited.items():
            self._hold(self._standing.setdefault(name, _Standing()), tenant, now)

    def _hold(self, standing: _Standing, tenant: Tenant, now: float) -> None:
        """New limits; what was counted stays counted."""
        name = tenant.name
        standing.requests = self._window(standing.requests, f"{name}:rpm", tenant.rpm, now)
        standing.tokens = self._window(standing.tokens, f"{name}:tpm", tenant.tpm, now)
        if tenant.max_concurrent is None:
            standing.slots = None
        elif standing.slots is not None:
            standing.slots.limit = tenant.max_concurrent
        elif self._shared is None:
            standing.slots = Slots(tenant.max_concurrent, standing.inflight)
        else:
            standing.slots = self._shared.slots(name, tenant.max_concurrent)
            standing.slots.busy = standing.inflight

    def _window(
        self, window: Window | SharedWindow | None, name: str, limit: int | None, now: float
    ) -> Window | SharedWindow | None:
        if limit is None:
            return None
        if window is None:
            new = self._shared.window if self._shared is not None else None
            return Window(limit, now) if new is None else new(name, limit, now)
        window.limit = limit
        return window

    async def admit(self, tenant: str) -> None:
        """Count one request in, wherever it is counted, or raise TooMany. Each `admit` is followed
        by one `leave`."""
        if self._shared is not None:
            await self._lease(tenant)
        self.enter(tenant)

    async def admit_tokens(self, tenant: str, tokens: int) -> Tokens | None:
        """Count tokens that may be computed, wherever they are counted; None for a tenant without
        such a limit. Raises TooMany."""
        if self._shared is not None:
            await self._lease(tenant, tokens)
        return self.take_tokens(tenant, tokens)

    async def _lease(self, tenant: str, tokens: int = 0) -> None:
        """Get from the other gateways what a request (or its tokens) is about to take, if too
        little of it is here. Whether it was enough is seen in the same turn of the event loop."""
        standing = self._standing.get(tenant)
        if standing is None:
            return
        for _ in range(TURNS):
            now = self._clock()
            lacking = [one for one in standing.needs(tokens) if not one[0].fits(now, one[1])]
            for counter, cost in lacking:
                if cost > counter.limit or not await counter.lease(now, cost):
                    return
            if not lacking:
                return

    def watches(self, tenant: str) -> bool:
        return tenant in self._standing

    def enter(self, tenant: str) -> None:
        """Count one request in here, or raise TooMany. Whose limits were lifted while a store was
        asked is let in."""
        standing = self._standing.setdefault(tenant, _Standing())
        now = self._clock()
        slots = standing.slots
        if slots is not None and not slots.fits(now, 1):
            raise TooMany(
                f"Tenant {tenant!r} has {slots.limit} requests in flight, which is its limit; "
                "wait for one to finish.",
                code="concurrency_limit_exceeded",
                retry_after_s=1.0,
            )
        window = standing.requests
        if window is not None:
            if not window.fits(now, 1):
                raise TooMany(
                    f"Tenant {tenant!r} may send {window.limit} requests a minute; slow down.",
                    code="rate_limit_exceeded",
                    retry_after_s=window.wait_s(now),
                )
            window.take(now, 1)
        standing.inflight += 1
        if slots is not None:
            slots.busy += 1

    def leave(self, tenant: str) -> None:
        standing = self._standing[tenant]
        standing.inflight -= 1
        if standing.slots is not None:
            standing.slots.busy -= 1
        if not standing.inflight and not standing.limited:
            del self._standing[tenant]

    def take_tokens(self, tenant: str, tokens: int) -> Tokens | None:
        """Count tokens here, or raise TooMany."""
        standing = self._standing.get(tenant)
        window = standing.tokens if standing else None
        if window is None:
            return None
        if tokens > window.limit:
            raise TooLarge(
                f"This request may need {tokens} tokens, and tenant {tenant!r} has {window.limit} "
                "tokens a minute (tpm), so that waiting does not help; send a shorter prompt or "
                "ask for fewer max_tokens.",
                code="request_too_large",
            )
        now = self._clock()
        if not window.fits(now, tokens):
            raise TooMany(
                f"Tenant {tenant!r} may use {window.limit} tokens a minute and this request may "
                f"need {tokens}; wait, or ask for fewer max_tokens.",
                code="rate_limit_exceeded",
                retry_after_s=window.wait_s(now, tokens),
            )
        return Tokens(window, window.take(now, tokens), tokens)

    def headers(self, tenant: str) -> Headers:
        """x-ratelimit-*, as OpenAI names them; none for a tenant without a rate."""
        standing = self._standing.get(tenant)
        if standing is None:
            return []
        headers: Headers = []
        now = self._clock()
        for name, window in ((b"requests", standing.requests), (b"tokens", standing.tokens)):
            if window is None:
                continue
            used = window.roll(now)
            reset_s = WINDOW_S * min(1.0, used / window.limit)
            headers += [
                (b"x-ratelimit-limit-" + name, b"%d" % window.limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % max(0, int(window.limit - used))),
                (b"x-ratelimit-reset-" + name, b"%.3fs" % reset_s),
            ]
        return headers


@dataclass(slots=True)
class Tokens:
    """Tokens that were counted for one request. Settled once."""

    _window: Window | SharedWindow
    _taken: float
    _counted: int

    def settle(self, used: int) -> None:
        self._window.correct(self._taken, used - self._counted)
        self._counted = used
