"""Keeps the keys in memory up with their store: a revocation anywhere holds here within a second.

Twice a second a thread asks the store what has changed since the version that is known; every few
seconds it is told which keys were used. While the store is away, known keys go on opening: locking
everybody out would be worse, and a revocation needs the store as well. Said in the log once, and on
/readyz as long as it lasts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.observe.logs import Log
from gateway.tenants.key_store import KeyStore, KeyStoreFault
from gateway.tenants.keys import Keys

POLL_S = 0.5
WRITE_USED_S = 5.0


class KeySync:
    """Owned by the event loop; one task (`run`) and whoever has just changed a key (`pull`)."""

    def __init__(
        self, store: KeyStore, keys: Keys, log: Log, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._keys = keys
        self._log = log
        self._clock = clock
        self._version = 0
        self._pulling = asyncio.Lock()
        self._wrote_at = clock()
        self._fault: str | None = None
        keys.complete = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(POLL_S)

    async def turn(self) -> None:
        """Once: pull, and write down uses if it is time."""
        try:
            await self.pull()
            if self._clock() - self._wrote_at >= WRITE_USED_S:
                await self.write_used()
        except KeyStoreFault as fault:
            self._tell(str(fault))
        else:
            self._tell(None)

    async def pull(self) -> None:
        """Learn what has changed. Raises KeyStoreFault."""
        async with self._pulling:
            changes = await asyncio.to_thread(self._store.changes, self._version)
            if changes.whole:
                self._log.warning("key store went back: all keys are read again",
                                  keys=len(changes.keys))  # fmt: skip
            self._keys.learn(changes.keys, changes.whole)
            self._version = changes.version

    async def write_used(self) -> None:
        """Raises KeyStoreFault; what could not be written is written next time."""
        self._wrote_at = self._clock()
        used, self._keys.used = self._keys.used, {}
        if not used:
            return
        try:
            await asyncio.to_thread(self._store.note_used, used)
        except KeyStoreFault:
            self._keys.used = {**used, **self._keys.used}
            raise

    async def problem(self) -> str | None:
        """For /readyz, without details."""
        if self._fault is None:
            return None
        return "the key store cannot be reached: known keys work, changes are not seen. See the log"

    def _tell(self, fault: str | None) -> None:
        if fault is not None and self._fault is None:
            self._log.warning("key store away", error=fault)
        elif fault is None and self._fault is not None:
            self._log.info("key store is back")
        self._fault = fault
