"""[limits] → where it is kept what tenants have used, and what gateways count together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from gateway.observe.logs import Log
from gateway.settings import Limits
from gateway.tenants.lease_store import LeaseStore, SqliteLeaseStore
from gateway.tenants.shared_rates import RateStore, SharedWindow
from gateway.tenants.shared_slots import TEND_S, SharedSlots, SlotStore
from gateway.tenants.window import Window


@dataclass(slots=True)
class SharedLimits:
    """What makes the counters of one gateway among several, and keeps its slots alive."""

    rates: RateStore
    slot_store: SlotStore
    _slots: dict[str, SharedSlots] = field(default_factory=dict)

    def window(self, name: str, limit: int, now: float) -> SharedWindow:
        return SharedWindow(limit, name, self.rates, Window(limit, now))

    def slots(self, name: str, limit: int) -> SharedSlots:
        """The same for the same name: what is held is not lost when a tenant's limit comes back."""
        one = self._slots.get(name)
        if one is None:
            clock, us = self.rates.clock, self.rates.us
            one = self._slots[name] = SharedSlots(limit, name, us, self.slot_store, clock)
        one.limit = limit
        return one

    async def tend(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TEND_S)
            for one in list(self._slots.values()):
                await one.tend()

    async def close(self) -> None:
        """Let go at once what would be free in ten seconds."""
        for one in self._slots.values():
            one.busy = 0
            await one.tend()


@dataclass(frozen=True, slots=True)
class LimitStores:
    """`shared`: None where there is one gateway, whose own memory counts rates."""

    leases: LeaseStore
    shared: SharedLimits | None = None


def build_limit_stores(settings: Limits, log: Log) -> LimitStores:
    """Raises LeaseStoreFault where a file cannot be used; a Redis is asked later."""
    if settings.store == "memory://":
        return LimitStores(SqliteLeaseStore(":memory:"))
    if settings.store.startswith("sqlite:///"):
        return LimitStores(SqliteLeaseStore(Path(settings.store.removeprefix("sqlite:///"))))
    # The client library is an optional dependency.
    from gateway.tenants.lease_store_redis import RedisLeaseStore  # noqa: PLC0415

    store = RedisLeaseStore(settings.store, settings.patience_s)
    return LimitStores(store, SharedLimits(RateStore(store, log), store))
