"""Memory in front of a slower store: hot answers at the price of a lookup, all answers kept.

    get   memory ─ miss ─► below ─ found ─► memory
    put   memory, and below (which queues it)

A put goes to both at once, so below holds everything that memory does and memory may evict without
writing. What below finds is promoted, unless something was purged while it was looking: then the
find may be of a purged entry, and forgetting it costs a miss at most.

A fault of the store below is passed on as StoreFault; what memory holds is still found.
"""

from __future__ import annotations

from dataclasses import replace

from cache.replay import Recording
from cache.store.base import Store, StoreStats, Which
from cache.store.memory import MemoryStore


class TieredStore:
    """Owns both stores: opens and closes them."""

    def __init__(self, memory: MemoryStore, below: Store) -> None:
        self._memory = memory
        self._below = below
        self._purges = 0
        self._hits = 0
        self._misses = 0

    async def open(self) -> None:
        await self._memory.open()
        await self._below.open()

    async def close(self) -> None:
        await self._below.close()
        await self._memory.close()

    async def flush(self) -> None:
        await self._below.flush()

    async def get(self, key: bytes) -> Recording | None:
        recording = self._memory.look_up(key)
        if recording is None:
            recording = await self._get_below(key)
        if recording is None:
            self._misses += 1
        else:
            self._hits += 1
        return recording

    async def put(self, key: bytes, recording: Recording) -> None:
        await self._memory.put(key, recording)
        await self._below.put(key, recording)

    async def purge(self, which: Which) -> int:
        self._purges += 1
        in_memory = await self._memory.purge(which)
        below = await self._below.purge(which)
        return max(in_memory, below)

    async def stats(self) -> StoreStats:
        """Of the whole: how full the store below is, and what was found in either."""
        below = await self._below.stats()
        return replace(below, hits=self._hits, misses=self._misses)

    async def _get_below(self, key: bytes) -> Recording | None:
        purges = self._purges
        recording = await self._below.get(key)
        if recording is None:
            return None
        newer = self._memory.look_up(key)
        if newer is not None:
            return newer
        if purges != self._purges:
            return None
        await self._memory.put(key, recording)
        return recording
