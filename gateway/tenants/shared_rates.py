"""Requests and tokens per minute that several gateways count together.

One account a minute in the budgets' store (tenants/lease_store.py), dealt out by slices as budgets
are: most requests ask nobody, and what all gateways have let in is never more than what was leased.
The sliding window is that of tenants/limits.py. A minute's account may lend

    limit − what the minute before used · the share of it that the window still covers

and as that share only shrinks, what was lent stays right. Minutes are those of the wall clock,
which gateways have in common up to their clocks' difference.

While the store is away each gateway counts for itself, with the whole limit: a rate protects
machines, and refusing everybody would be worse. (A budget is money: tenants/budgets.py.)
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.observe.logs import Log
from gateway.tenants.lease_line import LeaseLine
from gateway.tenants.lease_store import Account, LeaseStore, LeaseStoreFault, Move
from gateway.tenants.window import WINDOW_S, Window

SLICES = 50
"""A slice is this part of a minute's limit, or what a request needs."""
REFUSED_S = 0.1
"""After a refusal the store is not asked for so long, or a flood would ask it each time."""
KEPT_S = 3 * WINDOW_S
"""How long a minute's account is kept after it has ended."""


class RateStore(LeaseLine):
    """The store as rates use it."""

    def __init__(
        self,
        store: LeaseStore,
        log: Log,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            store,
            log,
            lost="rates are counted by each gateway alone",
            found="rates are shared again",
            clock=clock,
        )
        self.wall = wall
        self.us = uuid.uuid4().hex


@dataclass(slots=True, eq=False)
class SharedWindow:
    """One tenant's count of requests or tokens, as this gateway has a part in it. Owned by the
    event loop. `free` was leased in the minute that is now and not yet used."""

    limit: int
    name: str
    store: RateStore
    alone: Window
    """What this gateway has let in: what counts while the store is away."""
    minute: int = -1
    free: int = 0
    used: int = 0
    """Leased by all in this minute, as the store last said."""
    before: int = 0
    """Leased by all in the minute before."""
    turn: int = 0
    refused: int = 0
    refused_until: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def roll(self, now: float) -> float:
        """The estimate of what was used in the last minute, as far as it is known here."""
        alone = self.alone.roll(now)
        minute, elapsed = self._now()
        past = minute - self.minute
        if past == 0:
            return max(alone, self._current() + self.before * (1.0 - elapsed / WINDOW_S))
        return max(alone, self._current() * (1.0 - elapsed / WINDOW_S)) if past == 1 else alone

    def fits(self, now: float, cost: int) -> bool:
        if self.store.is_away:
            return self.alone.fits(now, cost)
        return self._now()[0] == self.minute and self.free >= cost

    def take(self, now: float, cost: int) -> float:
        """Count it; the minute that it was taken in."""
        self.alone.take(now, cost)
        self.free -= cost
        return self.minute

    def wait_s(self, now: float, cost: int = 1) -> float:
        if self.store.is_away:
            return self.alone.wait_s(now, cost)
        minute, elapsed = self._now()
        if minute != self.minute:
            return REFUSED_S
        return Window(self.limit, 0.0, self._current(), self.before).wait_s(elapsed, cost)

    def correct(self, taken: float, more: int) -> None:
        """What belongs to a minute that has ended is corrected here, and no longer with others."""
        is_now = taken == self.minute
        self.alone.correct(self.alone.opened if is_now else self.alone.opened - WINDOW_S, more)
        if is_now:
            self.free -= more
        elif taken == self.minute - 1:
            self.before = max(0, self.before + more)

    async def lease(self, now: float, cost: int) -> bool:
        """Lease until `cost` fits; whether it does."""
        async with self.lock:
            if self.fits(now, cost):
                return True
            if cost >= self.refused and self.store.wall() < self.refused_until:
                return False
            try:
                return await self._lease(now, cost)
            except LeaseStoreFault:
                return self.alone.fits(now, cost)

    async def _lease(self, now: float, cost: int) -> bool:
        minute, elapsed = self._now()
        if minute != self.minute:
            await self._begin(minute)
        lacks = cost - self.free
        lent = self.limit - math.ceil(self.before * (1.0 - elapsed / WINDOW_S))
        move = Move(self.store.us, self._next(), 0, lacks, max(lacks, self.limit // SLICES))
        moved = await self.store.move(self._account(minute, lent), move)
        self.free += moved.granted
        self.used = moved.used
        if self.fits(now, cost):
            return True
        self.refused, self.refused_until = cost, self.store.wall() + REFUSED_S
        return False

    async def _begin(self, minute: int) -> None:
        """Turn to a new minute. What lies unused of the one before was not used."""
        before = 0
        if self.minute == minute - 1 and self.free > 0:
            back = Move(self.store.us, self._next(), give=self.free)
            before = (await self.store.move(self._account(minute - 1, self.limit), back)).used
        else:
            before = await self.store.used(self._account(minute - 1, self.limit))
        self.minute, self.before, self.free, self.used = minute, before, 0, 0

    def _account(self, minute: int, limit: int) -> Account:
        return Account(f"{self.name}:{minute}", limit, (minute + 1) * WINDOW_S, KEPT_S)

    def _next(self) -> int:
        self.turn += 1
        return self.turn

    def _now(self) -> tuple[int, float]:
        """The minute, and the seconds since it began."""
        minute, elapsed = divmod(self.store.wall(), WINDOW_S)
        return int(minute), elapsed

    def _current(self) -> int:
        return max(0, self.used - self.free)
