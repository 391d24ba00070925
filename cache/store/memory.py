"""Recordings in this process, bounded in bytes, the least valuable leaving first.

Problem. Answers differ by four orders of magnitude in what they cost to make again and in what they
occupy: a 20,000-token document summed up in a line against a line blown up into 4,000 tokens with
logprobs. LRU counts neither, and one crawler that asks ten thousand questions once empties it.

Choice. GreedyDual-Size-Frequency (Cherkasova, "Improving WWW Proxies Performance with
GreedyDual-Size-Frequency Caching Policy", HP Labs 1998, after Cao and Irani's GreedyDual-Size,
1997): an entry's priority is

    age + uses × cost / bytes

with `age` the priority of what was last evicted. New arrivals and hits are placed on top of a
rising floor, so whatever is not asked for sinks relative to them and leaves in the end, however
often it was used in its day. `uses` counts up to MAX_USES, so that a burst on one question is
forgotten after as many generations of entries at most. In bench/eviction.py this saves 41 % of all
tokens where LRU saves 20 % (Zipf, room for 1 % of the answers), 60 against 48 % under drift and 35
against 25 % under scans (room for 5 %); it gives up byte hit rate for that, 34 against 42 % (Zipf,
5 %), because the largest answers are the first that it lets go.

    heap of (priority when pushed, …, entry)      priorities only rise, so a slot is a lower bound:
    hit      raise the entry's priority, O(1)     a hit leaves the heap alone, and an eviction puts
    evict    pop; risen since? push again         back what has risen since, O(log n) each

One scope may hold more than its share only while there is room: when a full store takes an entry of
a scope that is over it, entries of that same scope leave, lowest first. So who floods the store
with answers, however dear, pushes out their own and never the rest of other tenants' or users'.

Rejected: LRU, LFU (no ageing), sampling like Redis's (as good, but its tests are statistical),
W-TinyLFU (admission by frequency, blind to cost and size).

Price: an entry whose renderer keeps a fragment grows after it was placed, and is placed anew only
at its next hit; expired entries that nobody asks for stay until they sink.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Final

from cache.replay import Recording
from cache.store.base import Clock, StoreStats, Which

MAX_USES: Final = 64
SCOPE_SHARE: Final = 0.5
_PASSES: Final = 64
"""Entries of others that are passed over in search of one of a scope over its share. It holds half
of the bytes or so, and one is found after a few; if not, the lowest of all leaves."""
_PURGE_SLICE: Final = 2_000
"""Entries looked at by a purge before it lets other requests run (about 1 ms)."""


@dataclass(slots=True, eq=False)
class _Entry:
    key: bytes
    recording: Recording
    priority: float
    held_bytes: int
    uses: int = 1
    slot: int = 0
    """Serial number of its one live slot in the heap; slots with another number are dead."""


class MemoryStore:
    """See the head of this file. Everything but a long purge is done without waiting."""

    def __init__(
        self,
        max_bytes: int,
        *,
        clock: Clock = time.time,
        max_uses: int = MAX_USES,
        scope_share: float = SCOPE_SHARE,
    ) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._max_uses = max_uses
        self._fair_bytes = scope_share * max_bytes
        self._scope_bytes: Counter[str] = Counter()
        self._entries: dict[bytes, _Entry] = {}
        self._heap: list[tuple[float, int, bytes]] = []
        self._pushed = 0
        self._age = 0.0
        self._held_bytes = 0
        self._hits = self._misses = self._evicted = self._expired = self._dropped = 0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def get(self, key: bytes) -> Recording | None:
        return self.look_up(key)

    def look_up(self, key: bytes) -> Recording | None:
        """`get` for callers that must not wait (the tier above another store)."""
        entry = self._entries.get(key)
        if entry is None:
            self._misses += 1
            return None
        if entry.recording.expires_at <= self._clock():
            self._remove(entry)
            self._expired += 1
            self._misses += 1
            return None
        entry.uses = min(entry.uses + 1, self._max_uses)
        entry.priority = self._priority(entry.recording, entry.held_bytes, entry.uses)
        self._hits += 1
        return entry.recording

    async def put(self, key: bytes, recording: Recording) -> None:
        old = self._entries.get(key)
        if old is not None:
            self._remove(old)
        size = recording.held_bytes
        if size > self._max_bytes:
            self._dropped += 1
            return
        uses = 1 if old is None else old.uses
        entry = _Entry(key, recording, self._priority(recording, size, uses), size, uses)
        self._entries[key] = entry
        self._count(entry, size)
        self._push(entry)
        recording.memo.grew = partial(self._weigh_again, entry)
        self._make_room(recording.scope)

    async def purge(self, which: Which) -> int:
        if which.key is not None:
            return self._purge_among([which.key], which)
        purged = 0
        keys = list(self._entries)
        for first in range(0, len(keys), _PURGE_SLICE):
            purged += self._purge_among(keys[first : first + _PURGE_SLICE], which)
            await asyncio.sleep(0)
        return purged

    async def stats(self) -> StoreStats:
        return StoreStats(
            entries=len(self._entries),
            held_bytes=self._held_bytes,
            max_bytes=self._max_bytes,
            hits=self._hits,
            misses=self._misses,
            evicted=self._evicted,
            expired=self._expired,
            dropped=self._dropped,
        )

    def _purge_among(self, keys: list[bytes], which: Which) -> int:
        found = [self._entries[key] for key in keys if key in self._entries]
        matching = [entry for entry in found if which.matches(entry.key, entry.recording)]
        for entry in matching:
            self._remove(entry)
        return len(matching)

    def _priority(self, recording: Recording, held_bytes: int, uses: int) -> float:
        return self._age + uses * max(1.0, recording.cost_tokens) / held_bytes

    def _weigh_again(self, entry: _Entry) -> None:
        """A renderer kept a fragment: the entry is larger now, and others may have to leave."""
        grown = entry.recording.held_bytes - entry.held_bytes
        entry.held_bytes += grown
        self._count(entry, grown)
        self._make_room(entry.recording.scope)

    def _count(self, entry: _Entry, held_bytes: int) -> None:
        scope = entry.recording.scope
        self._held_bytes += held_bytes
        self._scope_bytes[scope] += held_bytes
        if not self._scope_bytes[scope]:
            del self._scope_bytes[scope]

    def _make_room(self, scope: str) -> None:
        """Because of an entry of `scope`."""
        while self._held_bytes > self._max_bytes:
            passed: list[_Entry] = []
            victim = self._lowest()
            if self._scope_bytes[scope] > self._fair_bytes:
                while victim.recording.scope != scope and len(passed) < _PASSES:
                    passed.append(victim)
                    victim = self._lowest()
            self._age = passed[0].priority if passed else victim.priority
            self._remove(victim)
            for entry in passed:
                self._push(entry)
            self._evicted += 1

    def _lowest(self) -> _Entry:
        """Take the entry with the lowest priority off the heap."""
        while True:
            priority, slot, key = heapq.heappop(self._heap)
            entry = self._entries.get(key)
            if entry is None or entry.slot != slot:
                continue
            if entry.priority <= priority:
                return entry
            self._push(entry)

    def _push(self, entry: _Entry) -> None:
        self._pushed += 1
        entry.slot = self._pushed
        heapq.heappush(self._heap, (entry.priority, entry.slot, entry.key))

    def _remove(self, entry: _Entry) -> None:
        del self._entries[entry.key]
        self._count(entry, -entry.held_bytes)
        entry.recording.memo.grew = None
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._sweep_heap()

    def _sweep_heap(self) -> None:
        """Drop the slots of entries that expired, were purged or replaced."""
        live = {entry.slot for entry in self._entries.values()}
        self._heap = [slot for slot in self._heap if slot[1] in live]
        heapq.heapify(self._heap)
