"""Recordings in one SQLite file: what the embedded default keeps across restarts.

Problem. A disk may take milliseconds and a commit more; the event loop has 100 µs for a request.
And most lookups are misses, so even asking a thread whether a key is there costs too much.

    event loop                                   threads
    get   not known ─► miss                      reader   SELECT, decode
          being written ─► found                          ▲ one at a time, own connection
          else ───────────────────────────────────────────┘ given READ_TIMEOUT_S, then StoreFault
    put   queue ─────────────────────────────►   writer   up to a batch a transaction, evict, sweep

- `known` holds every key (about 110 B an entry): what is not in it is not in the file, and
  a miss costs a set lookup. Another process that shares the file is noticed at the next sweep.
- What is queued is found in `_pending` until it is committed, so a put is visible at once.
- The queue is bounded in bytes. A put that finds it full is dropped and counted.
- A purge goes through the same queue, after the puts that came before it.
- A file that turns out to be broken is moved aside by the writer (store/sqlite_file.py).

Price: a hit here costs ~100 µs for the way to the thread and back; a memory tier goes in front. A
crash loses what was put in the last LINGER_S or so, and never a part of an entry.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from cache.replay import OBJECT_BYTES, Recording
from cache.store.base import Clock, StoreFault, StoreLate, StoreStats, Which
from cache.store.lag import Lag
from cache.store.sqlite_file import Put, SqliteReader, SqliteWriter, Touch, Write
from cache.store.sqlite_open import OnEvent, is_broken

READ_TIMEOUT_S: Final = 0.05
LINGER_S: Final = 0.005
"""The writer waits this long for more before it commits."""
_BATCH: Final = 256
_QUEUE_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class _Purge:
    which: Which
    done: asyncio.Future[int]


@dataclass(frozen=True, slots=True)
class _Flush:
    done: asyncio.Future[int]


@dataclass(frozen=True, slots=True)
class _StartAfresh:
    why: str
    generation: int


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Job: TypeAlias = Write | _Purge | _Flush | _StartAfresh | _Stop


class SqliteStore:
    """The asynchronous face of one file. Belongs to the event loop that opened it."""

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        scope_bytes: int | None = None,
        *,
        clock: Clock = time.time,
        on_event: OnEvent = lambda _text: None,
        queue_bytes: int = _QUEUE_BYTES,
        read_timeout_s: float = READ_TIMEOUT_S,
        sweep_every_s: float = 60.0,
    ) -> None:
        self._max_bytes = max_bytes
        self._scope_bytes = max_bytes if scope_bytes is None else min(max_bytes, scope_bytes)
        """The room that one scope has."""
        self._clock = clock
        self._on_event = on_event
        self._queue_bytes = queue_bytes
        self._read_timeout_s = read_timeout_s
        self._sweep_every_s = sweep_every_s
        self._file = SqliteWriter(
            path, max_bytes, self._scope_bytes, clock=clock, on_event=on_event
        )
        self._reader = SqliteReader(path)
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._pending: dict[bytes, Recording] = {}
        self._pending_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._read_pool: ThreadPoolExecutor | None = None
        self._purges = 0
        self._hits = self._misses = self._dropped = self._faults = 0

    # ------------------------------------------------------------------ the store's face

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._file.open)
        except (sqlite3.Error, OSError) as error:
            raise StoreFault(
                f"The cache file cannot be opened ({error}). Check that its folder exists and may "
                "be written to, or choose another store."
            ) from error
        self._read_pool = ThreadPoolExecutor(1, thread_name_prefix="sqlite-reader")
        self._thread = threading.Thread(target=self._write_jobs, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        if self._thread is None or self._read_pool is None:
            return
        thread, self._thread = self._thread, None
        self._jobs.put(_Stop())
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._read_pool.shutdown)
        self._reader.close()

    async def get(self, key: bytes) -> Recording | None:
        self._require_open()
        recording = self._pending.get(key)
        if recording is None and key in self._file.known:
            recording = await self._read(key)
        if recording is None or recording.expires_at <= self._clock():
            self._misses += 1
            return None
        self._hits += 1
        self._jobs.put(Touch(key))
        return recording

    async def put(self, key: bytes, recording: Recording) -> None:
        self._require_open()
        size = _queued_bytes(recording)
        if size > self._scope_bytes or self._pending_bytes + size > self._queue_bytes:
            self._dropped += 1
            return
        self._pending[key] = recording
        self._pending_bytes += size
        self._jobs.put(Put(key, recording))

    async def purge(self, which: Which) -> int:
        self._require_open()
        self._purges += 1
        for key in [k for k, r in self._pending.items() if which.matches(k, r)]:
            del self._pending[key]
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Purge(which, done))
        return await done

    async def flush(self) -> None:
        self._require_open()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Flush(done))
        await done

    async def stats(self) -> StoreStats:
        return StoreStats(
            entries=self._file.entries,
            held_bytes=self._file.held_bytes,
            max_bytes=self._max_bytes,
            hits=self._hits,
            misses=self._misses,
            evicted=self._file.evicted,
            expired=self._file.expired,
            dropped=self._dropped,
            faults=self._faults,
        )

    def _require_open(self) -> None:
        if self._thread is None:
            raise StoreFault("The store is not open.")

    async def _read(self, key: bytes) -> Recording | None:
        assert self._read_pool is not None
        assert self._loop is not None
        purges, generation = self._purges, self._file.generation
        lag = Lag(self._read_timeout_s, time.monotonic)
        reading = self._loop.run_in_executor(self._read_pool, self._reader.read, key)
        try:
            recording = await asyncio.wait_for(reading, self._read_timeout_s)
        except TimeoutError:
            why = f"No answer within {self._read_timeout_s} s."
            if lag.stop() <= self._read_timeout_s / 2:
                raise StoreLate(f"{why} This process was late itself.") from None
            self._faults += 1
            raise StoreFault(why) from None
        except sqlite3.Error as error:
            self._faults += 1
            if is_broken(error):
                self._jobs.put(_StartAfresh(f"reading failed ({error})", generation))
            raise StoreFault(str(error)) from error
        finally:
            lag.stop()
        # What was put meanwhile is newer; what was purged meanwhile must not come back.
        return self._pending.get(key) or (recording if purges == self._purges else None)

    # ------------------------------------------------------------------ the writer thread

    def _write_jobs(self) -> None:
        """The thread's life: batches of writes, and between them what else is asked for."""
        next_sweep = time.monotonic() + self._sweep_every_s
        running = True
        while running:
            writes, other = self._next_jobs(next_sweep - time.monotonic())
            if writes:
                self._attempt("writing", self._write, writes)
            if isinstance(other, _Stop):
                running = False
            elif other is not None:
                self._attempt("changing", self._do, other)
            if time.monotonic() >= next_sweep:
                self._attempt("sweeping", self._file.sweep)
                next_sweep = time.monotonic() + self._sweep_every_s
        self._file.close()

    def _next_jobs(self, wait_s: float) -> tuple[list[Write], _Job | None]:
        """Writes that can go together, and the job that ended the batch, if one did."""
        writes: list[Write] = []
        deadline = time.monotonic() + max(0.0, wait_s)
        while len(writes) < _BATCH:
            try:
                job = self._jobs.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if not isinstance(job, Put | Touch):
                return writes, job
            if not writes:
                deadline = time.monotonic() + LINGER_S
            writes.append(job)
        return writes, None

    def _write(self, writes: list[Write]) -> None:
        try:
            self._file.write(writes)
        finally:
            self._tell_loop(self._forget_pending, [w for w in writes if isinstance(w, Put)])

    def _do(self, job: _Job) -> None:
        purged = 0
        try:
            if isinstance(job, _Purge):
                purged = self._file.purge(job.which)
            elif isinstance(job, _StartAfresh) and job.generation == self._file.generation:
                self._move_aside(job.why)
        except (sqlite3.Error, OSError) as error:
            if isinstance(job, _Purge):
                self._tell_loop(_fail, job.done, StoreFault(f"Nothing was purged: {error}."))
            raise
        if isinstance(job, _Purge | _Flush):
            self._tell_loop(_resolve, job.done, purged)

    def _attempt(self, what: str, work: Callable[..., None], *arguments: object) -> None:
        """Do it; a fault costs what was to be written, and never the thread."""
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001  the thread serves whoever comes next
            self._faults += 1
            self._on_event(f"The cache file failed while {what}: {error}. Entries may be lost.")
            self._recover(error)

    def _recover(self, error: Exception) -> None:
        try:
            if isinstance(error, sqlite3.Error) and is_broken(error):
                self._move_aside(f"it is broken ({error})")
            else:
                self._file.recount()
        except (sqlite3.Error, OSError) as again:
            self._on_event(f"The cache file stays unusable: {again}.")

    def _move_aside(self, why: str) -> None:
        assert self._read_pool is not None
        self._read_pool.submit(self._reader.close).result()
        self._file.start_afresh(why)

    def _forget_pending(self, puts: list[Put]) -> None:
        for put in puts:
            self._pending_bytes -= _queued_bytes(put.recording)
            if self._pending.get(put.key) is put.recording:
                del self._pending[put.key]

    def _tell_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(callback, *arguments)


def _resolve(done: asyncio.Future[int], result: int) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[int], error: StoreFault) -> None:
    if not done.done():
        done.set_exception(error)


def _queued_bytes(recording: Recording) -> int:
    """As `held_bytes`, without the fragments: they come while it is queued and are not written."""
    return OBJECT_BYTES + len(recording.body)
