"""The exact cache: the same call gets the same answer, for the price of a lookup.

Reading and writing are two layers, with the join between them:

    Exact ─ miss ─► Join ─ one for all ─► Record ─► semantic ─► StoredOnly ─► cascade, model
      │                                     │
      └────────────── Shelf ────────────────┘   one store, the tenants' terms, what went wrong

`Exact` answers from the store. `Record` is run once per generation, however many requests share it
and whichever of them hang up; it stores the answer just before it passes `End` on, so whoever has
seen an answer's end can find it stored, and the join drops its entry only after that.

The gap that this leaves: a request misses the store (a lookup may take a while), meanwhile the
generation ends, is stored and leaves the join's table; the request arrives there, finds nobody and
would generate again. Therefore `Record` looks a second time before it asks the model: it is already
in the table then, so whatever ended before is stored and whatever begins after joins it. For a miss
in memory or SQLite the second look is a dictionary lookup.

Rejected: one layer that reads and writes, outside of the join (each listener would store the answer
again, and none would when the first hung up); the same inside of the join (a hit would pay for a
task); keeping ended generations in the table for a while (a race with a timer is still a race).

A store never fails a request: whatever it raises is counted, reported and treated as a miss. What
the caller's Cache-Control and the tenant's terms allow is decided here and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeAlias

from cache.key import cacheable, key_of
from cache.record import Recorder
from cache.replay import Recording, replay
from cache.store.base import Clock, Store, StoreLate
from engine.contract import (
    Answer,
    Answerer,
    CacheStatus,
    Call,
    Directives,
    End,
    NotCached,
    Trail,
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a tenant's policy says of the exact cache."""

    enabled: bool = True
    ttl_s: float = 86_400.0
    allow_sampling: bool = False
    """Also store answers to calls that ask for randomness by name (see cache/key.py)."""


TermsOf: TypeAlias = Callable[[Call, Trail], Terms]
OnFault: TypeAlias = Callable[[str, Exception], None]
"""Told of a store's fault: what was tried (get | put), and what it raised."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a lookup came to. `recording` is set for a hit only."""

    status: CacheStatus
    recording: Recording | None = None
    age_s: float | None = None


_MISS: Final = Found(CacheStatus("exact", forward="miss"))
_BYPASS: Final = Found(CacheStatus("exact", forward="bypass"))
_REFUSED: Final = Found(CacheStatus("exact", forward="request"))
_STALE: Final = Found(CacheStatus("exact", forward="stale"))
_FAULT: Final = Found(CacheStatus("exact", forward="miss", detail="store fault"))
_LATE: Final = Found(CacheStatus("exact", forward="miss", detail="no time for the store"))


class Shelf:
    """The store as the layers see it: with the rules applied, and never raising."""

    def __init__(
        self,
        store: Store,
        *,
        terms_of: TermsOf = lambda _call, _trail: Terms(),
        clock: Clock = time.time,
        on_fault: OnFault = lambda _what, _error: None,
    ) -> None:
        self._store = store
        self._terms_of = terms_of
        self._clock = clock
        self._on_fault = on_fault
        self._keyed: Call | None = None
        self._key = b""
        self.faults = 0
        self.unfit = 0
        """Answers that were seen to their end and not worth storing (see cache/record.py)."""

    def key(self, call: Call) -> bytes:
        """`key_of(call)`; the three layers ask for the same call one after the other."""
        if self._keyed is not call:
            self._keyed, self._key = None, key_of(call)
            self._keyed = call
        return self._key

    def may_store(self, call: Call, trail: Trail) -> bool:
        terms = self._terms_of(call, trail)
        return (
            terms.enabled
            and not trail.directives.no_store
            and cacheable(call, terms.allow_sampling)
        )

    def may_share(self, call: Call, trail: Trail) -> bool:
        """Whether the call may be answered together with others: it must be one that the store
        could have answered, or best-of-n sampling would collapse into one sample."""
        asked = trail.directives
        return not (asked.no_cache or asked.only_if_cached) and self.may_store(call, trail)

    async def find(self, call: Call, trail: Trail) -> Found:
        asked = trail.directives
        if asked.no_store or asked.no_cache:
            return _REFUSED
        terms = self._terms_of(call, trail)
        if not terms.enabled or not cacheable(call, terms.allow_sampling):
            return _BYPASS
        key = self.key(call)
        try:
            recording = await self._store.get(key)
        except Exception as error:  # noqa: BLE001  a cache never fails a request
            self._book_fault("get", error)
            return _LATE if isinstance(error, StoreLate) else _FAULT
        if recording is None or recording.scope != call.scope:
            # The key says so too; what a damaged or shared store gives back is looked at twice.
            return _MISS
        return self._judge(recording, terms, asked)

    def _judge(self, recording: Recording, terms: Terms, asked: Directives) -> Found:
        age_s = max(0.0, self._clock() - recording.stored_at)
        ttl_s = min(recording.ttl_s, terms.ttl_s) - age_s
        if ttl_s <= 0:
            return _STALE
        if asked.max_age_s is not None and age_s > asked.max_age_s:
            return _REFUSED
        return Found(CacheStatus("exact", hit=True, ttl_s=ttl_s), recording, age_s)

    async def keep(self, call: Call, trail: Trail, recorder: Recorder) -> None:
        recording = recorder.recording(
            stored_at=self._clock(),
            ttl_s=self._terms_of(call, trail).ttl_s,
            tags=trail.tags,
        )
        if recording is None:
            self.unfit += 1
            return
        try:
            await self._store.put(self.key(call), recording)
        except Exception as error:  # noqa: BLE001  a cache never fails a request
            self._book_fault("put", error)

    def _book_fault(self, what: str, error: Exception) -> None:
        self.faults += 1
        self._on_fault(what, error)


class Exact:
    """Answers from the shelf, or asks the inner answerer."""

    def __init__(self, shelf: Shelf, inner: Answerer) -> None:
        self._shelf = shelf
        self._inner = inner

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        started = time.perf_counter()
        found = await self._shelf.find(call, trail)
        trail.cache.append(found.status)
        trail.span("exact", started)
        if found.recording is not None:
            trail.age_s = found.age_s
            for event in replay(found.recording, trail.id):
                yield event
            return
        async with aclosing(self._inner(call, trail)) as answer:
            async for event in answer:
                yield event


class StoredOnly:
    """The border between what is stored and what computes: nobody who says only-if-cached passes.

    Inside of all caches, so that each of them is asked before this says no."""

    def __init__(self, inner: Answerer) -> None:
        self._inner = inner

    def __call__(self, call: Call, trail: Trail) -> Answer:
        if trail.directives.only_if_cached:
            raise NotCached(
                "The request says only-if-cached and no usable answer is stored. "
                "Send it without that directive to have it computed.",
                code="not_cached",
            )
        return self._inner(call, trail)


class Record:
    """Stores what the inner answerer says, after a second look at the shelf."""

    def __init__(self, shelf: Shelf, inner: Answerer) -> None:
        self._shelf = shelf
        self._inner = inner

    def __call__(self, call: Call, trail: Trail) -> Answer:
        """With no-store there is nothing to look up and nothing to keep: the inner answer."""
        if trail.directives.no_store:
            return self._inner(call, trail)
        return self._kept(call, trail)

    async def _kept(self, call: Call, trail: Trail) -> Answer:
        found = await self._shelf.find(call, trail)
        if found.recording is not None:
            _book_late_hit(trail, found)
            for event in replay(found.recording, trail.id):
                yield event
            return
        recorder = Recorder(call) if self._shelf.may_store(call, trail) else None
        async with aclosing(self._inner(call, trail)) as answer:
            async for event in answer:
                if recorder is not None:
                    recorder.see(event)
                    if isinstance(event, End):
                        await self._shelf.keep(call, trail, recorder)
                yield event


def _book_late_hit(trail: Trail, found: Found) -> None:
    """The first look said miss; what is reported is what happened."""
    trail.cache[:] = [status for status in trail.cache if status.layer != "exact"]
    trail.cache.insert(0, found.status)
    trail.age_s = found.age_s
