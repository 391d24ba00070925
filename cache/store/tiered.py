"""Memory in front of a slower store: hot answers at the price of a lookup, all answers kept.

    get   memory ─ miss ─► below ─ found ─► memory
    put   memory, and below (which queues it)

A put goes to both at once, so below holds everything that memory does and memory may evict without
writing. What below finds is promoted, unless something was purged while it was looking: then the
find may be of a purged entry, and forgetting it costs a miss at most.

A fault of the store below is passed on as StoreFault; what memory holds is still found.

Where several gateways share the store below, `feed` (cache/store/feed.py) tells of what the
others purge, and whether it has heard all of it. While it has not, memory is filled but not served.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from cache.replay import Recording
from cache.store.base import Store, StoreStats, Which
from cache.store.memory import MemoryStore


class Feed(Protocol):
    @property
    def in_touch(self) -> bool: ...

    def subscribe(self, on_purge: Callable[[Which], Awaitable[object]]) -> None: ...


class TieredStore:
    """Owns both stores: opens and closes them."""

    def __init__(self, memory: MemoryStore, below: Store, feed: Feed | None = None) -> None:
        self._memory = memory
        self._below = below
        self._feed = feed
        if feed is not None:
            feed.subscribe(self.forget)
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
        recording = self._look_up(key)
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

    async def forget(self, which: Which) -> int:
        """Purge memory alone: another gateway has seen to the store below."""
        self._purges += 1
        return await self._memory.purge(which)

    async def purge(self, which: Which) -> int:
        in_memory = await self.forget(which)
        below = await self._below.purge(which)
        return max(in_memory, below)

    async def stats(self) -> StoreStats:
        """Of the whole: how full the store below is, and what was found in either."""
        below = await self._below.stats()
        return replace(below, hits=self._hits, misses=self._misses)

    def _look_up(self, key: bytes) -> Recording | None:
        if self._feed is not None and not self._feed.in_touch:
            return None
        return self._memory.look_up(key)

    async def _get_below(self, key: bytes) -> Recording | None:
        purges = self._purges
        recording = await self._below.get(key)
        if recording is None:
            return None
        newer = self._look_up(key)
        if newer is not None:
            return newer
        if purges != self._purges:
            return None
        await self._memory.put(key, recording)
        return recording
