"""Requests at one time: of one gateway, or of several that hold slots of one limit together.

A gateway holds as many slots as it has requests in flight and a few more, and says so every two
seconds. Slots that nobody has spoken for in ten are free again: unlike money, they come back when a
gateway dies. One that was frozen for longer and goes on may for a moment be one too many; while the
store is away each counts for itself, with the whole limit.

Rejected: a counter that goes up and down (a gateway that dies would hold its part forever).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.tenants.lease_store import LeaseStoreFault

SLOT_TTL_S = 10.0
TEND_S = 2.0
SPARE = 20
"""A twentieth of a limit is held beyond what is in flight, so that most requests ask nobody."""
REFUSED_S = 0.1
AWAY_S = 1.0
"""After a fault the store is not asked for so long: a flood must not wait for it in a row."""


class SlotStore(Protocol):
    """Blocking; raises LeaseStoreFault."""

    def hold(self, name: str, holder: str, *, least: int, wanted: int, limit: int) -> int:
        """Hold `wanted` slots of `limit` for SLOT_TTL_S, or as many as others leave, and `least`
        in any case, because they are in use. Returns how many are held."""
        ...


@dataclass(slots=True)
class Slots:
    """Of one gateway alone."""

    limit: int
    busy: int = 0

    def fits(self, now: float, cost: int) -> bool:  # noqa: ARG002 - as windows are asked
        return self.busy + cost <= self.limit


@dataclass(slots=True, eq=False)
class SharedSlots:
    """This gateway's part of one tenant's limit. Owned by the event loop."""

    limit: int
    name: str
    holder: str
    store: SlotStore
    clock: Callable[[], float] = time.monotonic
    """Read after waiting: a request's own time may have passed long ago."""
    busy: int = 0
    held: int = 0
    away: bool = False
    refused_until: float = 0.0
    """The store is not asked before, after a refusal or a fault."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def fits(self, now: float, cost: int) -> bool:  # noqa: ARG002
        return self.busy + cost <= (self.limit if self.away else min(self.held, self.limit))

    async def lease(self, now: float, cost: int) -> bool:
        async with self.lock:
            if self.fits(now, cost):
                return True
            if self.clock() < self.refused_until:
                return False
            await self._hold(self.busy + cost + self.limit // SPARE)
            if self.fits(now, cost):
                return True
            self.refused_until = self.clock() + (AWAY_S if self.away else REFUSED_S)
            return False

    async def tend(self) -> None:
        """Say that what is held still is, and let go what is not needed."""
        async with self.lock:
            if self.held or self.busy:
                await self._hold(self.busy + self.limit // SPARE if self.busy else 0)

    async def _hold(self, wanted: int) -> None:
        try:
            self.held = await asyncio.to_thread(
                self.store.hold, self.name, self.holder,
                least=self.busy, wanted=min(wanted, self.limit), limit=self.limit,
            )  # fmt: skip
            self.away = False
        except LeaseStoreFault:
            self.away = True
