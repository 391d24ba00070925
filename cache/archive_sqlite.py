"""The semantic cache's archive in one SQLite file: what one machine keeps across restarts.

Problem. A commit takes milliseconds, a label comes with every miss, and none that is settled may be
lost, also when the process is killed.

Choice. What is told queues here in order; a task hands over what has gathered every LINGER_S, as
one transaction, to the one thread that owns the connection. `flush` waits for the commit of what
was told before it. A batch that fails is told to `on_event` and lost; a file that turns out to be
broken is moved aside, as that of the exact cache (cache/store/sqlite_open.py).

The file is one process's: gateways that are to learn from each other share a Redis.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cache.archive import Dropped, Erasure, Kept, Lesson, OnNews, Summary
from cache.archive_file import ArchiveFile, Told
from cache.store.base import Clock, StoreFault
from cache.store.sqlite_open import OnEvent, is_broken

LINGER_S: Final = 0.01
SWEEP_EVERY_S: Final = 60.0
_QUEUE_BYTES: Final = 64 << 20

T = TypeVar("T")

_TABLES: Final = {"questions": Kept, "summaries": Summary, "lessons": Lesson}
"""In the order in which they are loaded."""


class SqliteArchive:
    """See the head of this file. Belongs to the event loop that opened it."""

    def __init__(
        self,
        path: Path,
        scope_bytes: int,
        max_namespaces: int = 500,
        max_bytes: int = 1 << 30,
        *,
        clock: Clock = time.time,
        on_event: OnEvent = lambda _text: None,
        queue_bytes: int = _QUEUE_BYTES,
        sweep_every_s: float = SWEEP_EVERY_S,
    ) -> None:
        """`scope_bytes` bounds what each room may keep (cache/who.py), `max_namespaces` in how many
        a scope may have learnt, `max_bytes` the whole."""
        self._file = ArchiveFile(
            path, scope_bytes, max_bytes, max_namespaces, clock=clock, on_event=on_event
        )
        self._on_event = on_event
        self._queue_bytes = queue_bytes
        self._sweep_every_s = sweep_every_s
        self._queue: list[Told] = []
        self._queued_bytes = 0
        self._writing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._thread: ThreadPoolExecutor | None = None
        self._writer: asyncio.Task[None] | None = None
        self.dropped = 0
        """What was told and not kept: the queue was full, or the file failed."""
        self.in_touch = True

    async def open(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="archive")
        try:
            await self._on_thread(self._file.open)
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            self._thread = None
            raise StoreFault(
                f"The archive of the semantic cache cannot be opened ({error}). Check that its "
                "folder exists and may be written to, or choose another store."
            ) from error
        self._writer = asyncio.create_task(self._write_on(), name="archive-writer")

    async def close(self) -> None:
        if self._writer is None or self._thread is None:
            return
        writer, self._writer = self._writer, None
        self._wake.set()
        await writer
        await self._write_all()
        await self._on_thread(self._file.close)
        self._thread.shutdown()
        self._thread = None

    async def keep(self, kept: Kept) -> None:
        self._tell(kept, kept.held_bytes)

    async def drop(self, dropped: Dropped) -> None:
        self._tell(dropped, 8 * len(dropped.keys))

    async def teach(self, lesson: Lesson) -> None:
        self._tell(lesson, len(lesson.signs) + len(lesson.asked))

    async def sum_up(self, summary: Summary) -> None:
        self._tell(summary, len(summary.blob))

    async def erase(self, erasure: Erasure) -> int:
        await self._write_all()
        async with self._writing:
            try:
                return await self._on_thread(lambda: self._file.erase(erasure))
            except sqlite3.Error as error:
                raise StoreFault(f"Nothing was erased: {error}.") from error

    async def flush(self) -> None:
        await self._write_all()

    async def load(self) -> AsyncIterator[Kept | Summary | Lesson]:
        for table, kind in _TABLES.items():
            reader = msgspec.msgpack.Decoder(kind)
            place = 0
            while rows := await self._on_thread(lambda: self._file.page(table, place)):  # noqa: B023
                place = rows[-1][0]
                for _, data in rows:
                    with suppress(msgspec.DecodeError):
                        yield reader.decode(data)

    def follow(self, on_news: OnNews) -> None:
        """Nobody else changes the file."""

    # ------------------------------------------------------------------ the queue and its thread

    def _tell(self, told: Told, size: int) -> None:
        if self._writer is None:
            raise StoreFault("The archive is not open.")
        if self._queued_bytes + size > self._queue_bytes:
            self.dropped += 1
            return
        self._queue.append(told)
        self._queued_bytes += size
        self._wake.set()

    async def _write_on(self) -> None:
        """Until `close` has taken the task away."""
        sweep_at = time.monotonic() + self._sweep_every_s
        while self._writer is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, sweep_at - time.monotonic())):
                    await self._wake.wait()
            if time.monotonic() >= sweep_at:
                sweep_at = time.monotonic() + self._sweep_every_s
                async with self._writing:
                    await self._attempt("sweeping", self._file.sweep, 0)
            if self._wake.is_set():
                self._wake.clear()
                await asyncio.sleep(LINGER_S)
                await self._write_all()

    async def _write_all(self) -> None:
        """Returns when what was told before is in the file."""
        async with self._writing:
            batch, self._queue = self._queue, []
            self._queued_bytes = 0
            if batch:
                await self._attempt("writing", lambda: self._file.write(batch), len(batch))

    async def _attempt(self, what: str, work: Callable[[], None], size: int) -> None:
        """Do it; a fault costs what was to be written, and no request."""
        try:
            await self._on_thread(work)
        except (sqlite3.Error, OSError) as error:
            self.dropped += size
            self._on_event(
                f"The archive of the semantic cache failed while {what}: {error}. What was learnt "
                "in the last moments may be missing after a restart."
            )
            if isinstance(error, sqlite3.Error) and is_broken(error):
                await self._begin_again(f"it is broken ({error})")

    async def _begin_again(self, why: str) -> None:
        try:
            await self._on_thread(lambda: self._file.start_afresh(why))
        except (sqlite3.Error, OSError) as error:
            self._on_event(f"The archive of the semantic cache stays unusable: {error}.")

    async def _on_thread(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            raise StoreFault("The archive is not open.")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
