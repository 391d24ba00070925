"""Recordings in a Redis that several gateways share.

Problem. What one gateway has computed should be a hit on all of them; yet a server over the network
is the slowest and least reliable thing that a request could depend on.

Choice. Nobody depends on it. A lookup is one round trip within the request's patience, and whatever
goes wrong with it is a miss (cache/store/redis_line.py). Writes leave the request's path:

    get   being written here ─► found          purge   what is queued ─► gone
          else GET + HGET, one round trip              index walked in slices, scripts delete
    put   queue ─► writer task: a batch of             ─► feed: the other gateways' memories
          scripts in one round trip

- Where things lie, and why a purge finds them, is in cache/store/redis_index.py.
- The queue is bounded in bytes. A put that finds it full, and a batch that Redis did not take, are
  dropped and counted: a cache forgets rather than keeps anybody waiting.
- An entry's bytes begin with its key, and its checksum follows: what lies under the wrong name, or
  is torn, is a miss.
- A purge of another gateway may pass while our write of a matching entry is on its way. So what was
  written here within RECENT_S is looked at once more when the feed tells of a purge.

Not promised: what Redis brings back from an old snapshot or a replica that lagged has been purged
and lives again. Where erasure matters, run Redis as a cache: without snapshots.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from cache.key import family_of
from cache.replay import OBJECT_BYTES, Recording
from cache.store import redis_index as index
from cache.store.base import Clock, Labels, StoreFault, StoreLate, StoreStats, Which
from cache.store.purge_feed import PurgeFeed
from cache.store.redis_client import Command, is_refusal
from cache.store.redis_index import Family
from cache.store.redis_line import RedisLine

SCOPE_BYTES: Final = 256 << 20
ENTRY_BYTES: Final = 1 << 20
"""More takes longer to read than a request waits."""
RECENT_S: Final = 5.0
_BATCH: Final = 64
_BATCH_BYTES: Final = 1 << 20
_QUEUE_BYTES: Final = 16 << 20
_TOUCHES: Final = 4_096
_RECENT: Final = 20_000
_TOUCH_EVERY_S: Final = 0.05
_SLICE: Final = 500

_Rows: TypeAlias = list[tuple[bytes, bytes]]
"""Members of a family, each with its row of the index."""


@dataclass(frozen=True, slots=True)
class _Written:
    at: float
    key: bytes
    labels: Labels


class RedisStore:
    """See the head of this file. Opens and closes the line and the feed, which others may use."""

    def __init__(
        self,
        line: RedisLine,
        feed: PurgeFeed,
        scope_bytes: int = SCOPE_BYTES,
        *,
        clock: Clock = time.time,
        queue_bytes: int = _QUEUE_BYTES,
    ) -> None:
        self._line = line
        self._feed = feed
        self._scope_bytes = scope_bytes
        self._clock = clock
        self._queue_bytes = queue_bytes
        self._pending: dict[bytes, Recording] = {}
        self._pending_bytes = 0
        self._touched: dict[bytes, Recording] = {}
        self._recent: deque[_Written] = deque(maxlen=_RECENT)
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._idle = asyncio.Event()
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._purges = 0
        self._hits = self._misses = self._evicted = self._dropped = self._faults = 0
        feed.subscribe(self._hear_of_purge)

    # ------------------------------------------------------------------ the store's face

    async def open(self) -> None:
        await self._line.open()
        await self._feed.open()
        self._idle.set()
        self._writer = asyncio.create_task(self._write_on(), name="redis-writer")

    async def close(self) -> None:
        if self._writer is None:
            return
        await self.flush()
        writer, self._writer = self._writer, None
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer
        await self._feed.close()
        await self._line.close()

    async def get(self, key: bytes) -> Recording | None:
        recording = self._queued(key)
        if recording is None:
            recording = await self._read(key)
        if recording is None or recording.expires_at <= self._clock():
            self._misses += 1
            return None
        self._hits += 1
        return recording

    async def put(self, key: bytes, recording: Recording) -> None:
        size = _queued_bytes(recording)
        too_large = len(recording.body) > min(ENTRY_BYTES, self._scope_bytes - index.ROW_BYTES)
        no_room = self._pending_bytes + size > self._queue_bytes
        if too_large or no_room or not self._line.breaker.closed:
            self._dropped += 1
            return
        self._take_from_queue(key)
        self._pending[key] = recording
        self._pending_bytes += size
        self._idle.clear()
        self._wake.set()
        self._urgent.set()

    async def purge(self, which: Which) -> int:
        queued = self._forget_queued(which)
        async with self._writing:  # what is on its way arrives, and is found
            purged = await self._purge_shared(which)
        await self._feed.publish(which)
        return queued + purged

    async def flush(self) -> None:
        await self._idle.wait()

    async def stats(self) -> StoreStats:
        """Looks through Redis for all scopes: for people, not for every request."""
        scopes = entries = held = 0
        async for family in self._families(Which()):
            rows, held_bytes = await self._line.work(
                ("HLEN", family.index), ("HGET", family.index, "bytes")
            )
            if isinstance(held_bytes, bytes) and isinstance(rows, int):
                scopes, entries, held = scopes + 1, entries + rows - 2, held + int(held_bytes)
        return StoreStats(
            entries=entries,
            held_bytes=held,
            max_bytes=self._scope_bytes * max(1, scopes),
            hits=self._hits,
            misses=self._misses,
            evicted=self._evicted,
            dropped=self._dropped,
            faults=self._faults,
        )

    # ------------------------------------------------------------------ reading

    def _queued(self, key: bytes) -> Recording | None:
        """What is being written is memory like any other: see cache/store/feed.py."""
        return self._pending.get(key) if self._feed.in_touch else None

    async def _read(self, key: bytes) -> Recording | None:
        purges = self._purges
        try:
            entry, row = await self._line.ask(*index.look_up(key))
        except StoreFault as fault:
            self._faults += not isinstance(fault, StoreLate)
            raise
        recording = index.read_entry(key, entry) if isinstance(row, bytes) else None
        if recording is None and not (entry is None or row is None):
            self._faults += 1
        newer = self._queued(key)
        if newer is not None or recording is None or purges != self._purges:
            return newer
        if len(self._touched) < _TOUCHES:
            self._touched[key] = recording
            self._wake.set()
        return recording

    # ------------------------------------------------------------------ writing

    async def _write_on(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            with suppress(TimeoutError):  # what was used can be told later, together
                async with asyncio.timeout(_TOUCH_EVERY_S):
                    await self._urgent.wait()
            self._urgent.clear()
            while self._pending or self._touched:
                async with self._writing:
                    await self._write_batch()
            self._idle.set()

    async def _write_batch(self) -> None:
        """Writes first; what was used is told in the same round trip. A fault costs the batch."""
        now = self._clock()
        puts, commands = self._next_puts(now)
        touched, self._touched = self._touched, {}
        commands += [index.touch(*used) for used in list(touched.items())[: 4 * _BATCH]]
        try:
            replies = await self._line.work(*commands) if commands else []
        except StoreFault as fault:
            replies = []
            self._faults += not isinstance(fault, StoreLate)
        taken = [reply for reply in replies[: len(puts)] if isinstance(reply, int)]
        self._evicted += sum(taken)
        self._dropped += len(puts) - len(taken)
        self._book_recent(puts, now)
        for key, recording in puts:
            if self._pending.get(key) is recording:
                self._take_from_queue(key)

    def _next_puts(self, now: float) -> tuple[list[tuple[bytes, Recording]], list[Command]]:
        puts: list[tuple[bytes, Recording]] = []
        commands: list[Command] = []
        size = 0
        for key, recording in self._pending.items():
            if len(puts) == _BATCH or size > _BATCH_BYTES:
                break
            entry = index.pack_entry(key, recording)
            ttl_s = recording.expires_at - now
            commands.append(index.put(key, recording, entry, ttl_s, self._scope_bytes))
            puts.append((key, recording))
            size += len(entry)
        return puts, commands

    def _take_from_queue(self, key: bytes) -> None:
        old = self._pending.pop(key, None)
        if old is not None:
            self._pending_bytes -= _queued_bytes(old)

    def _book_recent(self, puts: list[tuple[bytes, Recording]], now: float) -> None:
        for key, one in puts:
            self._recent.append(_Written(now, key, index.Row(one.scope, one.model, one.tags)))
        while self._recent and self._recent[0].at < now - RECENT_S:
            self._recent.popleft()

    # ------------------------------------------------------------------ purging

    def _forget_queued(self, which: Which) -> int:
        self._purges += 1
        matching = [key for key, one in self._pending.items() if which.matches(key, one)]
        for key in matching:
            self._take_from_queue(key)
        return len(matching)

    async def _hear_of_purge(self, which: Which) -> None:
        self._forget_queued(which)
        async with self._writing:
            recent = {w.key for w in self._recent if which.matches(w.key, w.labels)}
            for key in recent:
                await self._forget(Family.of(key), [index.member_of(key)])

    async def _purge_shared(self, which: Which) -> int:
        purged = 0
        async for family in self._families(which):
            async for rows in self._slices(which, family):
                matching = [member for member, row in rows if _matches(which, family, member, row)]
                purged += await self._forget(family, matching)
        return purged

    async def _families(self, which: Which) -> AsyncIterator[Family]:
        if which.key is not None:
            yield Family.of(which.key)
        elif which.scope is not None:
            yield Family.named(family_of(which.scope))
        else:
            async for name in self._line.scan(index.INDICES, "HASH"):
                family = Family.of_index(name)
                if family is not None:
                    yield family

    async def _slices(self, which: Which, family: Family) -> AsyncIterator[_Rows]:
        """The family's rows, a few at a time, so that Redis is never held up for long."""
        if which.key is not None:
            member = index.member_of(which.key)
            [row] = await self._line.work(("HGET", family.index, member))
            yield [(member, row)] if isinstance(row, bytes) else []
            return
        cursor = 0
        while True:
            [reply] = await self._line.work(("HSCAN", family.index, cursor, "COUNT", _SLICE))
            if is_refusal(reply):  # not an index: nothing that it stands for is alive
                return
            cursor, rows = reply
            yield list(rows.items())
            if cursor == 0:
                return

    async def _forget(self, family: Family, members: list[bytes]) -> int:
        if not members:
            return 0
        [forgotten] = await self._line.work(index.forget(family, members))
        if not isinstance(forgotten, int):
            raise StoreFault(f"Redis did not let entries be purged: {forgotten}")
        return forgotten


def _matches(which: Which, family: Family, member: bytes, row: bytes) -> bool:
    labels = index.read_row(row)
    return labels is not None and which.matches(member + family.tail, labels)


def _queued_bytes(recording: Recording) -> int:
    """As `held_bytes`, without the fragments: they come while it is queued and are not written."""
    return OBJECT_BYTES + len(recording.body)
