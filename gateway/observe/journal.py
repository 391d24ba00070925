"""What was booked, in a file before its answer's end is handed on: nothing settled is lost.

Problem. The account is added up in memory and saved once a second, because a commit costs hundreds
of microseconds and an exact hit takes ninety. A `kill -9` in between would lose that second.

Choice. Each record is appended to a file with one write(2) before `End` leaves (3 µs with its
packing). Who dies after that has left it with the kernel. A saving notes in the same transaction
how far it had read (`Position`); at the next start whatever lies behind that is read again
(observe/keeper.py). So a record is added up exactly once, however the process ended. A machine that
loses power may lose what the kernel had not written: there is no fsync.

    PATH/0/00000007.journal    [length u32][crc32 u32][MessagePack of a Record] …
    PATH/0/lock                held by the process that writes into PATH/0

A segment begins with the prices of the process that wrote it, so that what is read again, or looked
up, is told at the money that it was booked at, whatever a token costs by then.

The same files are the archive of single requests. Looking one up reads them all (50 ms for 64 MiB),
which is rare, and saves the hot path a row in a database for each request.

Several processes may share PATH: each claims the first folder that nobody holds. Segments are
never appended to by a later process, for their last frame may be torn.

Rejected: SQLite on the hot path (16 µs in memory, a commit each), fsync (milliseconds), one file
for all processes (torn lines).
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EACCES
from itertools import islice
from pathlib import Path

import msgspec

from gateway.observe.ledger import Record
from gateway.observe.rollup import PriceList

SEGMENTS = 16
"""Into how many files the archive is divided: the oldest is deleted whole."""
MOST_PROCESSES = 64
_HEADER = struct.Struct("<II")

OnEvent = Callable[..., None]
"""(what, **facts): a log's warning."""


class JournalFault(Exception):
    """The folder cannot be used. The text names it and the remedy."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in one process's journal: what lies before it is saved."""

    journal: int
    segment: int
    offset: int


class Journal:
    """The file that this process appends to. Owned by the event loop's thread."""

    def __init__(
        self, folder: Path, keep_bytes: int, on_event: OnEvent, prices: PriceList | None = None
    ) -> None:
        """`prices`: at which this process books."""
        self._folder = folder
        self._prices = prices
        self._keep_bytes = keep_bytes
        self._segment_bytes = max(4096, keep_bytes // SEGMENTS)
        self._on_event = on_event
        self._encode = msgspec.msgpack.Encoder().encode
        self._lock = -1
        self._file = -1
        self._offset = 0
        self.number = 0
        self.segment = 0
        self._faulty = False

    def open(self) -> None:
        """Claim a folder and begin a segment. Raises JournalFault."""
        try:
            for number in range(MOST_PROCESSES):
                lock = claim(self._folder / str(number))
                if lock is not None:
                    self._lock, self.number = lock, number
                    self.segment = max(segments_of(self._folder / str(number)), default=0)
                    self._begin()
                    return
        except OSError as error:
            raise _unusable(self._folder, error) from error
        raise JournalFault(f"{self._folder} is used by {MOST_PROCESSES} processes already.")

    def append(self, record: Record) -> None:
        """Hand a record to the kernel. A fault is told once, and never fails a request."""
        frame = _framed(self._encode(record))
        try:
            if os.write(self._file, frame) == len(frame):
                self._offset += len(frame)
                self._faulty = False
                return
            problem = "the disk is full"
        except OSError as error:
            problem = str(error)
        if not self._faulty:
            self._on_event("ledger journal cannot be written", problem=problem)
        self._faulty = True
        with suppress(OSError):
            os.ftruncate(self._file, self._offset)

    def position(self) -> Position:
        """Where the next record goes. Begins a new segment when this one is full."""
        if self._offset >= self._segment_bytes:
            with suppress(OSError):  # a full disk: this segment grows on
                self._begin()
        return Position(self.number, self.segment, self._offset)

    def prune(self, saved: Position) -> None:
        """Delete the oldest segments over the bound, of those that are saved."""
        prune(self._folder / str(self.number), self._keep_bytes, saved.segment)

    def close(self) -> None:
        for one in (self._file, self._lock):
            if one >= 0:
                os.close(one)
        self._file = self._lock = -1

    def _begin(self) -> None:
        path = segment_path(self._folder / str(self.number), self.segment + 1)
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._offset = opened, 0
        self.segment += 1
        if self._prices is not None:
            frame = _framed(self._encode(self._prices))
            if os.write(opened, frame) == len(frame):
                self._offset = len(frame)
            else:  # the disk is full: what follows is told at the prices of its reader
                os.ftruncate(opened, 0)


def _framed(packed: bytes) -> bytes:
    return _HEADER.pack(len(packed), zlib.crc32(packed)) + packed


def check_writable(folder: Path) -> None:
    """Raises JournalFault."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(EACCES, "may not be written to")
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> JournalFault:
    return JournalFault(
        f"ledger.store: {folder} cannot be used ({error}). Name a file in a folder that may be "
        "written to, or set memory://."
    )


# --------------------------------------------------------------------------- reading


def claim(folder: Path) -> int | None:
    """A lock on one process's folder, held until its file is closed; None when another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def release(lock: int) -> None:
    os.close(lock)


def journals_in(folder: Path) -> list[int]:
    return sorted(int(one.name) for one in folder.glob("[0-9]*") if one.name.isdigit())


def segments_of(folder: Path) -> list[int]:
    return sorted(int(one.stem) for one in folder.glob("*.journal") if one.stem.isdigit())


def segment_path(folder: Path, segment: int) -> Path:
    return folder / f"{segment:08d}.journal"


def frames(held: bytes, start: int = 0) -> Iterator[bytes]:
    """The whole records from `start` on, packed; ends at the first that is torn."""
    while start + _HEADER.size <= len(held):
        length, check = _HEADER.unpack_from(held, start)
        start += _HEADER.size
        packed = held[start : start + length]
        if len(packed) < length or zlib.crc32(packed) != check:
            return
        yield packed
        start += length


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of what one process booked. `prices`: at which; None: an older version did not say."""

    number: int
    size: int
    prices: PriceList | None
    records: list[Record]


def read_from(folder: Path, since: Position | None) -> Iterator[Segment]:
    """What one process booked since a position, oldest first."""
    for number in segments_of(folder):
        if since is not None and number < since.segment:
            continue
        start = since.offset if since is not None and number == since.segment else 0
        held = segment_path(folder, number).read_bytes()
        yield Segment(number, len(held), prices_in(held), list(_records(frames(held, start))))


def prices_in(held: bytes) -> PriceList | None:
    """At which the records of a whole segment were booked."""
    first = next(frames(held), b"")
    with suppress(msgspec.DecodeError):  # a record
        return msgspec.msgpack.decode(first, type=PriceList)
    return None


def _records(packed: Iterable[bytes]) -> Iterator[Record]:
    unpack = msgspec.msgpack.Decoder(Record).decode
    for one in packed:
        with suppress(msgspec.DecodeError):  # prices, or of another version: its shape is unknown
            yield unpack(one)


def find(folder: Path, request_id: str) -> tuple[list[Record], PriceList | None]:
    """The records of one request (several prompts make several), wherever they lie, and the prices
    at which they were booked."""
    mark = request_id.encode()
    for number in journals_in(folder):
        inner = folder / str(number)
        for segment in reversed(segments_of(inner)):
            try:
                held = segment_path(inner, segment).read_bytes()
            except FileNotFoundError:  # pruned meanwhile
                continue
            if mark not in held:
                continue
            whole = _records(packed for packed in frames(held) if mark in packed)
            if found := [record for record in whole if record.id == request_id]:
                return found, prices_in(held)
    return [], None


def find_client(folder: Path, client_id: str, most: int) -> list[tuple[Record, PriceList | None]]:
    """The latest records that callers gave this id, newest first, with the prices at which they
    were booked. Whoever sends one id with each request has many."""
    found: list[tuple[Record, PriceList | None]] = []
    for number in journals_in(folder):
        found += islice(_sent_as(folder / str(number), client_id), most)
    return sorted(found, key=lambda one: -one[0].at)[:most]


def _sent_as(inner: Path, client_id: str) -> Iterator[tuple[Record, PriceList | None]]:
    """Of one process, newest first."""
    mark = client_id.encode()
    for segment in reversed(segments_of(inner)):
        try:
            held = segment_path(inner, segment).read_bytes()
        except FileNotFoundError:  # pruned meanwhile
            continue
        if mark not in held:
            continue
        listed = prices_in(held)
        whole = list(_records(packed for packed in frames(held) if mark in packed))
        yield from ((one, listed) for one in reversed(whole) if one.client_id == client_id)


def prune(folder: Path, keep_bytes: int, saved_segment: int) -> None:
    segments = segments_of(folder)
    sizes = {one: segment_path(folder, one).stat().st_size for one in segments}
    held = sum(sizes.values())
    for one in segments:
        if held <= keep_bytes or one >= saved_segment:
            return
        segment_path(folder, one).unlink(missing_ok=True)
        held -= sizes[one]
