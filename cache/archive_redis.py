"""The semantic cache's archive in a Redis: what gateways learn from each other, and who forgets.

Problem. A hit that one gateway has earned should be a hit on all of them, a label should teach all,
and what one is told to forget must be forgotten by all; but nothing of this may be waited for by a
request, and Redis may be slow, full, empty or away.

Choice. Each gateway holds everything in its own index and searches only that. Redis keeps the truth
(cache/archive_redis_index.py) and carries the news of it (cache/store/feed.py):

    keep, drop, teach ─► queue ─► writer: scripts and news in one round trip ─┬─► Redis
    others' news ◄── a question's name, fetched; lessons and erasures whole ──┘

- No request ever waits here: what is told queues, in bounded memory, and is lost where Redis does
  not take it in time. What others erased is known within a second, or nothing is served
  (`in_touch`).
- News of a question is its name alone, so that no text lies in the stream that an erasure would not
  find there.
- A gateway may write a question after another has erased its like and before it has heard of that.
  So on hearing of an erasure it looks once more at all that it wrote within RECENT_S.
- What was missed (`Lost`: Redis was flushed or restarted, or one was away for too long) is loaded
  again as at a start, which waits until Redis is there.

Rejected: Redis 8's vector sets as the one shared index. A search would then wait for Redis, in the
request, and depend on its version; the gateway needs each question's text, answer and record for
the decision anyway, and has them here, with a search of 0.1 to 0.4 ms.

Price: each gateway holds every question of the others, 1 to 4 KB each.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final, TypeAlias

import msgspec

from cache import archive_redis_index as index
from cache.archive import (
    Dropped,
    Erasure,
    Kept,
    Lesson,
    Lost,
    OnNews,
    Summary,
    doomed_groups,
)
from cache.archive_redis_index import Family
from cache.entry import Labels
from cache.key import family_of
from cache.store.base import Clock, StoreFault
from cache.store.feed import TRUST_S, Feed, Topic
from cache.store.redis_client import Command, is_refusal
from cache.store.redis_line import RedisLine

LINGER_S: Final = 0.01
RECENT_S: Final = 5.0
ENTRY_BYTES: Final = 1 << 20
_RECENT: Final = 10_000
_QUEUE_BYTES: Final = 16 << 20
_BATCH: Final = 100
_SLICE: Final = 500
_FETCH: Final = 100
_AGAIN_S: Final = 0.2


class Added(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A question was kept. Which one is looked up, so that none lies in the stream."""

    namespace: bytes
    key: int


_Message: TypeAlias = Added | Dropped | Lesson | Erasure | Lost
_Told: TypeAlias = Kept | Dropped | Lesson | Summary

NEWS: Final[Topic[_Message]] = Topic(
    b"news",
    msgspec.msgpack.Decoder(tuple[str, _Message]),
    everything=Lost(),
    nothing=Dropped(b"", ()),
)


class RedisArchive:
    """See the head of this file. Owns its line. Belongs to one event loop."""

    def __init__(
        self,
        line: RedisLine,
        scope_bytes: int,
        max_namespaces: int = 500,
        *,
        clock: Clock = time.time,
        queue_bytes: int = _QUEUE_BYTES,
        trust_s: float = TRUST_S,
    ) -> None:
        """`scope_bytes` and `max_namespaces` bound what each scope may keep."""
        self._line = line
        self._feed: Feed[_Message] = Feed(line, NEWS, trust_s=trust_s)
        self._scope_bytes = scope_bytes
        self._max_namespaces = max_namespaces
        self._clock = clock
        self._queue_bytes = queue_bytes
        self._queue: deque[tuple[_Told, int]] = deque()
        self._queued_bytes = 0
        self._recent: deque[tuple[float, Kept]] = deque(maxlen=_RECENT)
        self._writing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._on_news: OnNews | None = None
        self.dropped = 0
        """What was told and not kept: the queue was full, or Redis did not take it."""

    async def open(self) -> None:
        await self._line.open()
        self._feed.subscribe(self._hear)
        await self._feed.open()
        self._writer = asyncio.create_task(self._write_on(), name="archive-writer")

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

    @property
    def in_touch(self) -> bool:
        return self._feed.in_touch

    def follow(self, on_news: OnNews) -> None:
        self._on_news = on_news

    # ------------------------------------------------------------------ telling

    async def keep(self, kept: Kept) -> None:
        self._tell(kept, kept.held_bytes)

    async def drop(self, dropped: Dropped) -> None:
        self._tell(dropped, 8 * len(dropped.keys))

    async def teach(self, lesson: Lesson) -> None:
        self._tell(lesson, len(lesson.signs) + len(lesson.asked))

    async def sum_up(self, summary: Summary) -> None:
        self._tell(summary, len(summary.blob))

    async def flush(self) -> None:
        async with self._writing:
            await self._write_all()

    def _tell(self, told: _Told, size: int) -> None:
        if self._writer is None:
            raise StoreFault("The archive is not open.")
        too_large = isinstance(told, Kept) and size > min(ENTRY_BYTES, self._scope_bytes)
        if too_large or self._queued_bytes + size > self._queue_bytes:
            self.dropped += 1
            return
        self._queue.append((told, size))
        self._queued_bytes += size
        self._wake.set()

    async def _write_on(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(LINGER_S)
            self._wake.clear()
            await self.flush()

    async def _write_all(self) -> None:
        """Returns when what was told before is in Redis, or lost. To be called with `_writing`."""
        for _ in range(0, len(self._queue), _BATCH):
            batch = [self._take() for _ in range(min(_BATCH, len(self._queue)))]
            commands = [command for told in batch for command in self._commands(told)]
            try:
                replies = await self._line.work(*commands) if commands else []
            except StoreFault:
                self.dropped += len(batch)
                continue
            self.dropped += sum(map(is_refusal, replies))

    def _take(self) -> _Told:
        told, size = self._queue.popleft()
        self._queued_bytes -= size
        return told

    def _commands(self, told: _Told) -> list[Command]:
        if isinstance(told, Summary):
            return [index.sum_up(told, self._max_namespaces)]
        if isinstance(told, Lesson):
            return [index.teach(told, self._max_namespaces), self._feed.telling(told)]
        if isinstance(told, Dropped):
            return [_forgetting(told), self._feed.telling(told)]
        now = self._clock()
        while self._recent and self._recent[0][0] < now - RECENT_S:
            self._recent.popleft()
        self._recent.append((now, told))
        news = self._feed.telling(Added(told.namespace, told.key))
        return [index.keep(told, told.expires_at - now, self._scope_bytes), news]

    # ------------------------------------------------------------------ hearing

    async def _hear(self, message: _Message) -> None:
        news = await self._fetch(message) if isinstance(message, Added) else message
        if self._on_news is not None and news is not None:
            await self._on_news(news)
        if isinstance(message, Erasure):
            await self._look_again(message)

    async def _fetch(self, added: Added) -> Kept | None:
        family, member = Family.of(added.namespace), index.member_of(added.namespace, added.key)
        [raw] = await self._line.work(("GET", family.entries + member))
        return index.read_kept(family, member, raw)

    async def _look_again(self, erasure: Erasure) -> None:
        """What was on its way while another gateway erased its like. Until that is done no other
        news is heard, and so nothing served."""
        async with self._writing:
            await self._write_all()
            late = [kept for _, kept in self._recent if erasure.matches(kept)]
            for kept in late:
                dropped = Dropped(kept.namespace, (kept.key,))
                commands = (_forgetting(dropped), self._feed.telling(dropped))
                await _patiently(lambda: self._line.work(*commands))  # noqa: B023  awaited at once

    # ------------------------------------------------------------------ erasing

    async def erase(self, erasure: Erasure) -> int:
        erased = 0
        async with self._writing:
            await self._write_all()
            for family in await self._families_of(erasure):
                rows = await self._rows(family)
                doomed = doomed_groups(rows.values(), erasure)
                members = [m for m, row in rows.items() if (row.namespace, row.group) in doomed]
                erased += await self._forget(family, members)
        await self._feed.publish(erasure)
        return erased

    async def _families_of(self, erasure: Erasure) -> list[Family]:
        if erasure.scope is not None:
            return [Family.named(family_of(erasure.scope))]
        return await self._families(index.INDICES, "HASH")

    async def _families(self, pattern: bytes, kind: str) -> list[Family]:
        found = {Family.of_key(name) async for name in self._line.scan(pattern, kind)}
        return sorted((family for family in found if family), key=lambda family: family.tail)

    async def _rows(self, family: Family) -> dict[bytes, Labels]:
        """The family's index, a few rows at a time, so that Redis is never held up for long."""
        rows: dict[bytes, Labels] = {}
        cursor = 0
        while True:
            [reply] = await self._line.work(("HSCAN", family.index, cursor, "COUNT", _SLICE))
            if is_refusal(reply):  # not an index: nothing that it stands for is alive
                return rows
            cursor, raw = reply
            for member, row in raw.items():
                labels = index.read_row(family, member, row)
                if labels is not None:
                    rows[member] = labels
            if cursor == 0:
                return rows

    async def _forget(self, family: Family, members: list[bytes]) -> int:
        forgotten = 0
        for start in range(0, len(members), _SLICE):
            [reply] = await self._line.work(index.forget(family, members[start : start + _SLICE]))
            if not isinstance(reply, int):
                raise StoreFault(f"Redis did not let questions be erased: {reply}")
            forgotten += reply
        return forgotten

    # ------------------------------------------------------------------ loading

    async def load(self) -> AsyncIterator[Kept | Summary | Lesson]:
        """Waits until Redis is there, however long."""
        for family in await _patiently(lambda: self._families(index.INDICES, "HASH")):
            rows = await _patiently(lambda: self._rows(family))  # noqa: B023  awaited at once
            members = sorted(rows, key=index.age_of)
            for start in range(0, len(members), _FETCH):
                for kept in await self._kept(family, members[start : start + _FETCH]):
                    yield kept
        learnt = await self._learnt()
        for told in learnt:
            yield told

    async def _kept(self, family: Family, members: list[bytes]) -> list[Kept]:
        names = [family.entries + member for member in members]
        [reply] = await _patiently(lambda: self._line.work(("MGET", *names)))
        if is_refusal(reply):
            return []
        found = map(index.read_kept, [family] * len(members), members, reply)
        now = self._clock()
        return [kept for kept in found if kept is not None and kept.expires_at > now]

    async def _learnt(self) -> list[Summary | Lesson]:
        """The summaries, then the lessons of all by time."""
        summaries: list[Summary] = []
        lessons: list[Lesson] = []
        for family in await _patiently(lambda: self._families(index.SPACES, "ZSET")):
            [spaces] = await self._ask(("ZRANGE", family.spaces, 0, -1))
            for space in spaces or []:
                summary, told = await self._ask(
                    ("GET", family.summary(space)), ("ZRANGE", family.lessons(space), 0, -1)
                )
                summaries += [one for one in (index.read_summary(summary),) if one is not None]
                lessons += [one for one in map(index.read_lesson, told or []) if one is not None]
        return [*summaries, *sorted(lessons, key=lambda one: (one.at, one.number))]

    async def _ask(self, *commands: Command) -> list[Any]:
        """Replies; None for what is refused, because something else lies there."""
        replies = await _patiently(lambda: self._line.work(*commands))
        return [None if is_refusal(reply) else reply for reply in replies]


def _forgetting(dropped: Dropped) -> Command:
    members = [index.member_of(dropped.namespace, key) for key in dropped.keys]
    return index.forget(Family.of(dropped.namespace), members)


async def _patiently(ask: Callable[[], Any]) -> Any:
    """What `ask` gives, asked again until it does."""
    while True:
        try:
            return await ask()
        except StoreFault:
            await asyncio.sleep(_AGAIN_S)
