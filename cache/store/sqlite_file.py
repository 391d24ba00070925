"""The SQLite file itself: schema, reads, batches of writes, eviction. Plain blocking functions.

`SqliteWriter` is used by the one writer thread and `SqliteReader` by the one reader thread of
store/sqlite.py; each owns a connection, and WAL lets them work at the same time.

What a crash can do. In WAL mode a transaction is in the file wholly or not at all, and one that was
committed survives the death of the process (`synchronous=NORMAL`: only a loss of power may take the
last ones). Each entry carries a checksum besides (cache/replay.py).

Eviction is that of store/memory.py, with priorities in an index: the floor (`age`) needs no
keeping, it is the lowest priority in the file. A scope that outgrows `scope_bytes` loses its own
lowest, so that nobody pushes out what others keep until the whole is full.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from cache.replay import Recording, bytes_of_tags, decode, encode
from cache.store.base import Clock, Which
from cache.store.memory import MAX_USES
from cache.store.sqlite_open import (
    OnEvent,
    Transaction,
    connect,
    leave_no_trace,
    move_aside,
    open_file,
    open_or_start_afresh,
)

SCHEMA_VERSION: Final = 2
ROW_BYTES: Final = 400
"""What a row occupies beside its data: key, columns and its places in five indices."""
TAG_COPIES: Final = 2
"""Of each tag, in the table of tags and in its index."""
_EVICT_AT_ONCE: Final = 64
_EXPIRE_AT_ONCE: Final = 1_000

_SCHEMA: Final = """
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
CREATE INDEX IF NOT EXISTS entries_by_scope ON entries (scope, priority, held_bytes);
CREATE INDEX IF NOT EXISTS entries_by_expiry ON entries (expires_at, held_bytes);
CREATE INDEX IF NOT EXISTS entries_by_priority ON entries (priority);
CREATE INDEX IF NOT EXISTS tags_by_entry ON tags (id);
"""


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    recording: Recording


@dataclass(frozen=True, slots=True)
class Touch:
    """An entry was read."""

    key: bytes


Write: TypeAlias = Put | Touch


class SqliteReader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def read(self, key: bytes) -> Recording | None:
        if self._connection is None:
            self._connection = connect(self._path)
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

    def __init__(
        self, path: Path, max_bytes: int, scope_bytes: int, *, clock: Clock, on_event: OnEvent
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._scope_bytes = scope_bytes
        self._scopes: Counter[str] = Counter()
        """Bytes held by each scope."""
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
        open_or_start_afresh(self._open_as_it_is, self.start_afresh)

    def start_afresh(self, why: str) -> None:
        self.close()
        self.generation += 1
        aside = move_aside(self._path, self._clock())
        self._on_event(
            f"The cache file {self._path} was moved to {aside} because {why}; an empty one takes "
            "its place. The moved file can be deleted."
        )
        self._open_as_it_is()

    def _open_as_it_is(self) -> None:
        self._connection = open_file(self._path, _SCHEMA, SCHEMA_VERSION)
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
        with Transaction(self._db):
            age = self._age()
            for write in batch:
                if isinstance(write, Put):
                    self._put(write, age)
                else:
                    self._touch(write, age)
            self._evict()

    def _put(self, put: Put, age: float) -> None:
        recording, data = put.recording, encode(put.recording)
        held_bytes = len(data) + ROW_BYTES + TAG_COPIES * bytes_of_tags(recording.tags)
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
        self._count(recording.scope, held_bytes)

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
        for scope in [s for s, held in self._scopes.items() if held > self._scope_bytes]:
            query = "SELECT key, held_bytes FROM entries WHERE scope = ? ORDER BY priority LIMIT ?"
            while self._evict_some(self._scopes[scope] - self._scope_bytes, query, scope):
                pass
        query = "SELECT key, held_bytes FROM entries ORDER BY priority LIMIT ?"
        while self._evict_some(self.held_bytes - self._max_bytes, query):
            pass

    def _evict_some(self, over: int, query: str, *values: str) -> bool:
        """The first few of what `query` names; whether there may be more to do."""
        victims: list[bytes] = []
        found = self._db.execute(query, (*values, _EVICT_AT_ONCE)).fetchall() if over > 0 else []
        for key, held_bytes in found:
            if over <= 0:
                break
            victims.append(key)
            over -= held_bytes
        self.evicted += self._delete(victims)
        return bool(victims)

    def _delete(self, keys: Sequence[bytes]) -> int:
        deleted = 0
        for key in keys:
            query = "DELETE FROM entries WHERE key = ? RETURNING scope, held_bytes"
            for scope, held_bytes in self._db.execute(query, (key,)).fetchall():
                self._count(scope, -held_bytes)
                self.entries -= 1
                deleted += 1
            self.known.discard(key)
        return deleted

    def _count(self, scope: str, held_bytes: int) -> None:
        self.held_bytes += held_bytes
        self._scopes[scope] += held_bytes
        if self._scopes[scope] <= 0:
            del self._scopes[scope]

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
        with Transaction(self._db):
            deleted = self._delete([key for (key,) in self._db.execute(query, values).fetchall()])
        leave_no_trace(self._db)
        return deleted

    def sweep(self) -> None:
        """Delete what has expired; take up what another process has written."""
        query = "SELECT key FROM entries WHERE expires_at <= ? LIMIT ?"
        while True:
            with Transaction(self._db):
                rows = self._db.execute(query, (self._clock(), _EXPIRE_AT_ONCE)).fetchall()
                self.expired += self._delete([key for (key,) in rows])
            if len(rows) < _EXPIRE_AT_ONCE:
                break
        self.recount()

    def recount(self) -> None:
        """Take the totals (from the index by scope) and the new keys from the file."""
        query = "SELECT scope, count(*), sum(held_bytes) FROM entries GROUP BY scope"
        totals = self._db.execute(query).fetchall()
        self.entries = sum(entries for _, entries, _ in totals)
        self._scopes = Counter({scope: held_bytes for scope, _, held_bytes in totals})
        self.held_bytes = self._scopes.total()
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
