"""Whether the caches' store does its work, for /readyz and the log.

A store that fails costs hits and never an answer, so it does not make the gateway unready: a
balancer that took away every gateway of a shared Redis would turn a cold cache into an outage. It
is told as `degraded`, with status 200, for whoever watches.

That this process was too late itself to read an answer (`StoreLate`) is counted apart, and says
nothing of the store.

Known by asking for a key that nobody has (a shared store then has to answer; a file's index knows
without reading), and from faults of the last `RECENT_S`, which is how a file's are seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from cache.key import KEY_BYTES
from cache.store.base import Store, StoreAway, StoreLate
from gateway.observe.logs import Log

RECENT_S = 10.0
PATIENCE_S = 1.0
_NOBODYS = bytes(KEY_BYTES)


class StoreHealth:
    """Told of every fault (`tell`); asked by /readyz (`problem`). Lives on the event loop."""

    def __init__(self, store: Store, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._log = log
        self._clock = clock
        self._failed_at: float | None = None
        self._late_at: float | None = None
        self.counts = {"store": 0, "late": 0}
        """Faults since the start, by whose they were."""

    def tell(self, what: str, error: Exception) -> None:
        """Log a fault; of a store that is known to be away, its line told once."""
        if isinstance(error, StoreLate):
            self._tell_late(what, error)
            return
        self.counts["store"] += 1
        self._failed_at = self._clock()
        if not isinstance(error, StoreAway):
            self._log.warning("store fault", what=what, error=str(error))

    def _tell_late(self, what: str, error: StoreLate) -> None:
        """Once in a while: who is late already has no time for a line about each request."""
        self.counts["late"] += 1
        now = self._clock()
        if self._late_at is None or now - self._late_at >= RECENT_S:
            self._late_at = now
            self._log.warning("gateway late", what=what, why=str(error))

    async def problem(self) -> str | None:
        """What is wrong, without details: everybody may read /readyz, the log is for us."""
        failed_at = self._failed_at
        if failed_at is not None and self._clock() - failed_at < RECENT_S:
            return "the cache's store failed lately; answers are computed. See the log."
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._store.get(_NOBODYS)
        except StoreLate:
            return None
        except Exception:  # noqa: BLE001 - whatever it is, it is not reachable
            return "the cache's store cannot be reached; answers are computed. See the log."
        return None
