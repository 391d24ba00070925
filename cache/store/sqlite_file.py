"""The SQLite file itself: schema, reads, batches of writes, eviction. Plain blocking functions.

`SqliteWriter` is used by the one writer thread and `SqliteReader` by the one reader thread of
store/sqlite.py; each owns a connection, and WAL lets them work at the same time.

What a crash can do. In WAL mode a transaction is in the file wholly or not at all, and one that was
committed survives the death of the process (`synchronous=NORMAL`: only a loss of power may take the
last ones). Each entry carries a checksum besides (cache/replay.py).

A file that is not ours to read (rubbish, torn by a disk, another schema) is moved aside and a new
one is begun: a cache can be lost but must not stop a server. It is kept, under a name that says
when, for whoever wants to know why.

Eviction is that of store/memory.py, with priorities in an index: the floor (`age`) needs no
keeping, it is the lowest priority in the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from cache.replay import Recording, decode, encode
from cache.store.base import Clock, Which
from cache.store.memory import MAX_USES

SCHEMA_VERSION: Final = 1
ROW_BYTES: Final = 400
"""What a row occupies beside its data: key, columns and its places in five indices."""
_EVICT_AT_ONCE: Final = 64
_EXPIRE_AT_ONCE: Final = 1_000
_BROKEN: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    scope TEXT NOT NULL,
    model TEXT NOT NULL,
    expires_at REAL NOT NULL,
    held_bytes INTEGER NOT NULL,
    value REAL NOT NULL,      -- cost / bytes
    uses INTEGER NOT NULL,
    priority REAL NOT NULL,   -- age when last used + uses * value
    data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS tags (
    tag TEXT NOT NULL,
    id INTEGER NOT NULL REFERENCES entries (id) ON DELETE CASCADE,
    PRIMARY KEY (tag, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_by_scope ON entries (scope);
CREATE INDEX IF NOT EXISTS entries_by_expiry ON entries (expires_at, held_bytes);
CREATE INDEX IF NOT EXISTS entries_by_priority ON entries (priority);
CREATE INDEX IF NOT EXISTS tags_by_entry ON tags (id);
PRAGMA user_version = {SCHEMA_VERSION};
"""

OnEvent: TypeAlias = Callable[[str], None]
"""Told in words what an operator should know: a file moved aside, a batch lost."""


class WrongSchemaError(Exception):
    """The file was written by another version of this program."""


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    recording: Recording


@dataclass(frozen=True, slots=True)
class Touch:
    """An entry was read."""

    key: bytes


Write: TypeAlias = Put | Touch


def is_broken(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in _BROKEN


def check_usable(path: Path) -> None:
    """Raises OSError or sqlite3.Error where no cache file can be made or written to. One that is
    broken or busy will do: it is moved aside, or waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(_connect(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        if not is_broken(error) and getattr(error, "sqlite_errorcode", None) not in _BUSY:
            raise


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=2.0, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


class SqliteReader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def read(self, key: bytes) -> Recording | None:
        if self._connection is None:
            self._connection = _connect(self._path)
        query = "SELECT data FROM entries WHERE key = ?"
        row = self._connection.execute(query, (key,)).fetchone()
        return None if row is None else decode(row[0])

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class SqliteWriter:
    """All changes. `known` is shared with the event loop, which only asks it `in`."""

    def __init__(self, path: Path, max_bytes: int, *, clock: Clock, on_event: OnEvent) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._clock = clock
        self._on_event = on_event
        self._connection: sqlite3.Connection | None = None
        self._newest_id = 0
        self.known: set[bytes] = set()
        self.generation = 0
        """How many files were moved aside: a complaint about an earlier one is out of date."""
        self.entries = 0
        self.held_bytes = 0
        self.evicted = 0
        self.expired = 0

    # ------------------------------------------------------------------ opening

    def open(self) -> None:
        """Open or make the file; one that cannot be read is moved aside first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open_as_it_is()
        except WrongSchemaError as error:
            self.start_afresh(str(error))
        except sqlite3.DatabaseError as error:
            if not is_broken(error):
                raise
            self.start_afresh(f"it cannot be read ({error})")

    def start_afresh(self, why: str) -> None:
        self.close()
        self.generation += 1
        aside = self._path.with_name(f"{self._path.name}.aside-{int(self._clock())}")
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            if part.exists():
                part.replace(aside.with_name(aside.name + suffix))
        self._on_event(
            f"The cache file {self._path} was moved to {aside} because {why}; an empty one takes "
            "its place. The moved file can be deleted."
        )
        self._open_as_it_is()

    def _open_as_it_is(self) -> None:
        self._connection = connection = _connect(self._path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and tables == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        elif version != SCHEMA_VERSION:
            raise WrongSchemaError(f"its schema is {version}, not {SCHEMA_VERSION}")
        self.known.clear()
        self._newest_id = 0
        self.recount()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connection is not None
        return self._connection

    # ------------------------------------------------------------------ writing

    def write(self, batch: Iterable[Write]) -> None:
        """All of it in one transaction, then what has become too much is evicted in the same."""
        with _Transaction(self._db):
            age = self._age()
            for write in batch:
                if isinstance(write, Put):
                    self._put(write, age)
                else:
                    self._touch(write, age)
            self._evict()

    def _put(self, put: Put, age: float) -> None:
        recording, data = put.recording, encode(put.recording)
        held_bytes = len(data) + ROW_BYTES
        value = max(1.0, recording.cost_tokens) / held_bytes
        self._delete([put.key])
        cursor = self._db.execute(
            "INSERT INTO entries (key, scope, model, expires_at, held_bytes, value, uses, priority,"
            " data) VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?)",
            (
                put.key,
                recording.scope,
                recording.model,
                recording.expires_at,
                held_bytes,
                value,
                age + value,
                data,
            ),
        )
        row_id = cursor.lastrowid
        self._db.executemany(
            "INSERT OR IGNORE INTO tags (tag, id) VALUES (?, ?)",
            [(tag, row_id) for tag in recording.tags],
        )
        self.known.add(put.key)
        self.entries += 1
        self.held_bytes += held_bytes

    def _touch(self, touch: Touch, age: float) -> None:
        self._db.execute(
            "UPDATE entries SET uses = min(uses + 1, ?), priority = ? + min(uses + 1, ?) * value"
            " WHERE key = ?",
            (MAX_USES, age, MAX_USES, touch.key),
        )

    def _age(self) -> float:
        (lowest,) = self._db.execute("SELECT min(priority) FROM entries").fetchone()
        return float(lowest or 0.0)

    def _evict(self) -> None:
        while self.held_bytes > self._max_bytes:
            over = self.held_bytes - self._max_bytes
            query = "SELECT key, held_bytes FROM entries ORDER BY priority LIMIT ?"
            victims: list[bytes] = []
            for key, held_bytes in self._db.execute(query, (_EVICT_AT_ONCE,)).fetchall():
                if over <= 0:
                    break
                victims.append(key)
                over -= held_bytes
            if not victims:
                self.held_bytes = 0
                return
            self.evicted += self._delete(victims)

    def _delete(self, keys: Sequence[bytes]) -> int:
        deleted = 0
        for key in keys:
            query = "DELETE FROM entries WHERE key = ? RETURNING held_bytes"
            for (held_bytes,) in self._db.execute(query, (key,)).fetchall():
                self.held_bytes -= held_bytes
                self.entries -= 1
                deleted += 1
            self.known.discard(key)
        return deleted

    # ------------------------------------------------------------------ forgetting

    def purge(self, which: Which) -> int:
        clauses = {
            "scope = ?": which.scope,
            "model = ?": which.model,
            "key = ?": which.key,
            "id IN (SELECT id FROM tags WHERE tag = ?)": which.tag,
        }
        named = {clause: value for clause, value in clauses.items() if value is not None}
        query = f"SELECT key FROM entries WHERE {' AND '.join(named) or '1'}"  # noqa: S608  no input
        values = list(named.values())
        with _Transaction(self._db):
            return self._delete([key for (key,) in self._db.execute(query, values).fetchall()])

    def sweep(self) -> None:
        """Delete what has expired; take up what another process has written."""
        query = "SELECT key FROM entries WHERE expires_at <= ? LIMIT ?"
        while True:
            with _Transaction(self._db):
                rows = self._db.execute(query, (self._clock(), _EXPIRE_AT_ONCE)).fetchall()
                self.expired += self._delete([key for (key,) in rows])
            if len(rows) < _EXPIRE_AT_ONCE:
                break
        self.recount()

    def recount(self) -> None:
        """Take the totals (from the index by expiry) and the new keys from the file."""
        totals = self._db.execute("SELECT count(*), ifnull(sum(held_bytes), 0) FROM entries")
        self.entries, self.held_bytes = totals.fetchone()
        # The first time all keys, from the index; later only rows that are new, from the table.
        everything, newer = (
            "SELECT id, key FROM entries",
            "SELECT id, key FROM entries WHERE id > ?",
        )
        rows = (
            self._db.execute(newer, (self._newest_id,))
            if self._newest_id
            else self._db.execute(everything)
        )
        for row_id, key in rows:
            self._newest_id = max(self._newest_id, row_id)
            self.known.add(key)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK on any exception."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def integrity(path: Path) -> str:
    """SQLite's own full check: "ok", or what is wrong. For tests and `sluice doctor`."""
    with closing(_connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
