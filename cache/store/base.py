"""What every store of recordings promises. tests/contract/test_store.py holds each to it.

A store is a place where things may be lost but never mixed up: it may forget at any moment (room,
time, a fault), and what it gives back is exactly what was put under that key. A recording carries
all that a store must know of it (scope, model, tags, lifetime), so tiers can pass it on.

    get     None for what is not there, is too old, or does not decode. Returns the recording that
            was put, or its equal. Answers within the store's own short deadline or raises
            StoreFault: a caller never hangs on a cache.
    put     returns at once: a slow store queues the write, in bounded memory, and drops it when the
            queue is full (`stats().dropped`). What was put is found by a `get` that starts after
            `put` returned, unless it was evicted: this is what closes the gap between a generation
            that ends and a request that has just missed it (cache/join.py).
    purge   when it returns, no `get` finds what was there before and matches, whether or not the
            write had reached the disk.
    flush   waits until what was put is as durable as the store makes it.

A key ends with the family of its recording's scope (cache/key.py), so that a store which cannot
look through all its entries knows where those of a scope are.

A store belongs to one event loop. Foreign errors are mapped to StoreFault where they arise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from cache.replay import Recording

Clock: TypeAlias = Callable[[], float]
"""Seconds since the epoch: a store outlives the process, so monotonic time would not do."""


class StoreFault(Exception):
    """The store could not do it (down, slow, full, broken). The request goes on without."""


class Labels(Protocol):
    """What an entry can be purged by. A Recording carries them; an index may hold them alone."""

    @property
    def scope(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...


class StoreAway(StoreFault):
    """Known and told of already: nothing was tried, and nobody need be told again."""


class StoreLate(StoreFault):
    """No answer in time, because this process was late itself: it is no fault of the store."""


@dataclass(frozen=True, slots=True)
class Which:
    """What to purge: entries that match everything named here. Naming nothing means all of them."""

    scope: str | None = None
    model: str | None = None
    """The model that answered, not the alias that was asked for."""
    tag: str | None = None
    key: bytes | None = None
    learnt: bool = False
    """Not entries alone: also what other layers keep of such requests, to learn from them."""

    def matches(self, key: bytes, labels: Labels) -> bool:
        return (
            self.scope in (None, labels.scope)
            and self.model in (None, labels.model)
            and (self.tag is None or self.tag in labels.tags)
            and self.key in (None, key)
        )


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counts since the store was opened, and how full it is now. `held_bytes` ≤ `max_bytes`: of the
    whole, or of as many scopes as a store has that bounds each by itself."""

    entries: int
    held_bytes: int
    max_bytes: int
    hits: int = 0
    misses: int = 0
    evicted: int = 0
    expired: int = 0
    dropped: int = 0
    """Writes given up: too large for the store, or its queue was full."""
    faults: int = 0


class Store(Protocol):
    async def open(self) -> None:
        """Make ready; called once, before anything else."""

    async def close(self) -> None:
        """Flush and let go of threads, files and connections; calling it again does nothing."""

    async def get(self, key: bytes) -> Recording | None: ...

    async def put(self, key: bytes, recording: Recording) -> None: ...

    async def purge(self, which: Which) -> int:
        """Forget what matches; returns how many entries that were."""

    async def flush(self) -> None: ...

    async def stats(self) -> StoreStats: ...
