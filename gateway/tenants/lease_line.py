"""A lease store (tenants/lease_store.py), asked off the event loop and left alone after a fault.

Whoever leases from it, budgets and rates, asks it in a thread, and does not ask again for a second
when it could not be reached, so that a store that hangs costs a request in a second its patience
and not every request. What happens meanwhile is theirs to decide. Lost and found are said once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from gateway.observe.logs import Log
from gateway.tenants.lease_store import Account, LeaseStore, LeaseStoreFault, Move, Moved

T = TypeVar("T")

AWAY_S = 1.0


class LeaseLine:
    """Owned by the event loop's thread. `lost` and `found` are what the log says of it."""

    def __init__(
        self, store: LeaseStore, log: Log, *, lost: str, found: str, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._log = log
        self._lost, self._found = lost, found
        self.clock = clock
        self._away_until = -math.inf
        self.fault = False

    @property
    def is_away(self) -> bool:
        return self.clock() < self._away_until

    def try_again(self) -> None:
        """Forget that it was away a moment ago."""
        self._away_until = -math.inf

    async def move(self, account: Account, move: Move) -> Moved:
        """Raises LeaseStoreFault, as `used` does."""
        return await self._ask(lambda: self._store.move(account, move))

    async def used(self, account: Account) -> int:
        return await self._ask(lambda: self._store.used(account))

    async def used_of(self, accounts: Sequence[Account]) -> list[int]:
        return await self._ask(lambda: [self._store.used(account) for account in accounts])

    async def _ask(self, ask: Callable[[], T]) -> T:
        try:
            answer = await asyncio.to_thread(ask)
        except LeaseStoreFault as fault:
            self._away_until = self.clock() + AWAY_S
            if not self.fault:
                self._log.warning(self._lost, error=str(fault))
            self.fault = True
            raise
        if self.fault:
            self._log.info(self._found)
        self.fault = False
        return answer
