"""The file of cache/archive_sqlite.py: schema, batches, erasure. Plain blocking functions.

questions   one row each
summaries   one row a namespace
lessons     those after the summary; without one the last KEPT_TAIL of a namespace
            (of both, the namespaces of a scope that learnt last)

What a room (cache/who.py) may keep is bounded, and so is the whole. In a room with too much the
tenant that holds most loses, and in it the end user who does: the oldest of theirs. Where all rooms
together are too much, the largest one begins. What was learnt may take half of the whole.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from cache.archive import KEPT_TAIL, LIFE_S, Dropped, Erasure, Kept, Lesson, Summary
from cache.key import FAMILY_BYTES
from cache.replay import bytes_of_tags
from cache.store.base import Clock
from cache.store.sqlite_open import (
    OnEvent,
    Transaction,
    leave_no_trace,
    move_aside,
    open_file,
    open_or_start_afresh,
)
from cache.who import room_of, tenant_of

SCHEMA_VERSION: Final = 2
ROW_BYTES: Final = 300
"""What a question occupies beside its data: columns and its places in the indices."""
TAG_COPIES: Final = 2
"""Of each tag, in the table of tags and in its index."""
_PAGE: Final = 500
_SLACK: Final = 1 / 32
"""How much more goes than has to, since finding who holds most takes a look at a room's index."""
_AT_ONCE: Final = 64
"""Rows, until it is asked again who holds most."""

_SCHEMA: Final = """
CREATE TABLE questions (
    namespace BLOB NOT NULL,
    key INTEGER NOT NULL,
    grp INTEGER NOT NULL,
    room TEXT NOT NULL,
    scope TEXT NOT NULL,
    model TEXT NOT NULL,
    answered_by TEXT NOT NULL,
    owner TEXT NOT NULL,
    answer TEXT NOT NULL,
    expires_at REAL NOT NULL,
    held_bytes INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (namespace, key)
);
CREATE TABLE tags (
    tag TEXT NOT NULL,
    namespace BLOB NOT NULL,
    key INTEGER NOT NULL,
    PRIMARY KEY (tag, namespace, key),
    FOREIGN KEY (namespace, key) REFERENCES questions ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX tags_by_question ON tags (namespace, key);
CREATE INDEX questions_by_group ON questions (namespace, grp);
CREATE INDEX questions_by_scope ON questions (scope);
CREATE INDEX questions_by_owner ON questions (room, owner, key, held_bytes);
CREATE INDEX questions_by_expiry ON questions (expires_at);
CREATE INDEX questions_by_answer ON questions (answer);
CREATE TABLE summaries (
    namespace BLOB PRIMARY KEY,
    room TEXT NOT NULL,
    at REAL NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE lessons (
    namespace BLOB NOT NULL,
    teller TEXT NOT NULL,
    number INTEGER NOT NULL,
    room TEXT NOT NULL,
    at REAL NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (namespace, teller, number)
);
"""

_TRIM_LESSONS: Final = """
DELETE FROM lessons WHERE rowid IN (SELECT rowid FROM (
    SELECT rowid, row_number() OVER (PARTITION BY namespace ORDER BY rowid DESC) AS place
    FROM lessons) WHERE place > ?)
"""

_TRIM_NAMESPACES: Final = """
DELETE FROM {table} WHERE namespace IN (SELECT namespace FROM (
    SELECT namespace, row_number() OVER (
        PARTITION BY substr(namespace, -:family) ORDER BY max(at) DESC) AS place
    FROM {table} GROUP BY namespace) WHERE place > :most)
"""

_LEARNT: Final = """
SELECT namespace, room, sum(size) FROM (
    SELECT namespace, room, at, length(data) AS size FROM summaries UNION ALL
    SELECT namespace, room, at, length(data) AS size FROM lessons)
GROUP BY namespace ORDER BY max(at)
"""

_packer = msgspec.msgpack.Encoder()

Told: TypeAlias = Kept | Dropped | Lesson | Summary


class ArchiveFile:
    """The file: plain blocking functions, for one thread."""

    def __init__(
        self,
        path: Path,
        scope_bytes: int,
        max_bytes: int,
        max_namespaces: int,
        *,
        clock: Clock,
        on_event: OnEvent,
    ) -> None:
        self._path = path
        self._room_bytes = scope_bytes
        self._max_bytes = max_bytes
        self._max_namespaces = max_namespaces
        self._clock = clock
        self._on_event = on_event
        self._connection: sqlite3.Connection | None = None
        self._rooms: Counter[str] = Counter()
        """Bytes of the questions of each."""
        self._learnt = 0
        """Bytes of summaries and lessons: since the last sweep, at most."""

    def open(self) -> None:
        open_or_start_afresh(self._open_as_it_is, self.start_afresh)
        self.sweep()

    def start_afresh(self, why: str) -> None:
        self.close()
        aside = move_aside(self._path, self._clock())
        self._on_event(
            f"The archive {self._path} of the semantic cache was moved to {aside} because {why}; "
            "an empty one takes its place. The moved file can be deleted."
        )
        self._open_as_it_is()

    def _open_as_it_is(self) -> None:
        self._connection = open_file(self._path, _SCHEMA, SCHEMA_VERSION)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connection is not None
        return self._connection

    # ------------------------------------------------------------------ writing

    def write(self, batch: list[Told]) -> None:
        with Transaction(self._db):
            for told in batch:
                if isinstance(told, Kept):
                    self._keep(told)
                elif isinstance(told, Dropped):
                    self._delete([(told.namespace, key) for key in told.keys])
                elif isinstance(told, Lesson):
                    self._teach(told)
                else:
                    self._sum_up(told)
            self._evict()

    def _keep(self, kept: Kept) -> None:
        self._delete([(kept.namespace, kept.key)])
        held_bytes = kept.held_bytes + ROW_BYTES + TAG_COPIES * bytes_of_tags(kept.tags)
        self._db.execute(
            "INSERT INTO questions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(kept.namespace, kept.key, kept.group, room_of(kept.scope), kept.scope),
                *(kept.model, kept.answered_by),
                *(kept.owner, kept.answer, kept.expires_at, held_bytes, _packer.encode(kept)),
            ),
        )
        rows = [(tag, kept.namespace, kept.key) for tag in set(kept.tags)]
        self._db.executemany("INSERT INTO tags VALUES (?, ?, ?)", rows)
        self._rooms[room_of(kept.scope)] += held_bytes

    def _teach(self, lesson: Lesson) -> None:
        data = _packer.encode(lesson)
        room = room_of(lesson.scope)
        row = (lesson.namespace, lesson.teller, lesson.number, room, lesson.at, data)
        self._db.execute("INSERT OR REPLACE INTO lessons VALUES (?, ?, ?, ?, ?, ?)", row)
        self._learnt += len(data)

    def _sum_up(self, summary: Summary) -> None:
        data = _packer.encode(summary)
        query = "DELETE FROM summaries WHERE namespace = ? RETURNING length(data)"
        before = self._db.execute(query, (summary.namespace,)).fetchone() or (0,)
        row = (summary.namespace, room_of(summary.scope), summary.at, data)
        self._db.execute("INSERT INTO summaries VALUES (?, ?, ?, ?)", row)
        self._learnt += len(data) - before[0]
        heard = [(summary.namespace, *each) for each in summary.heard.items()]
        query = "DELETE FROM lessons WHERE namespace = ? AND teller = ? AND number <= ?"
        self._db.executemany(query, heard)

    def _evict(self) -> None:
        if self._learnt > self._max_bytes:  # before the next sweep would see to it
            self._trim_learnt()
        for room in [name for name, held in self._rooms.items() if held > self._room_bytes]:
            self._shrink([room], int(self._room_bytes * (1 - _SLACK)))
        left = self._max_bytes - min(self._learnt, self._max_bytes // 2)
        if self._rooms.total() > left:
            self._shrink(self._rooms, int(left * (1 - _SLACK)))

    def _shrink(self, rooms: Iterable[str], to: int) -> None:
        """Until `rooms` together hold no more than `to`, from the largest of them."""
        query = (
            "SELECT namespace, key, held_bytes FROM questions WHERE room = ? AND owner = ? "
            "ORDER BY key LIMIT ?"
        )
        while (over := sum(self._rooms[room] for room in rooms) - to) > 0:
            room = max(rooms, key=self._rooms.__getitem__)
            owner = self._largest_owner(room)
            if owner is None:
                return
            victims = []
            for namespace, key, held_bytes in self._db.execute(query, (room, owner, _AT_ONCE)):
                if over <= 0:
                    break
                victims.append((namespace, key))
                over -= held_bytes
            self._delete(victims)

    def _largest_owner(self, room: str) -> str | None:
        """In the tenant that holds most there, the end user who does."""
        query = "SELECT owner, sum(held_bytes) FROM questions WHERE room = ? GROUP BY owner"
        owners: list[tuple[str, int]] = self._db.execute(query, (room,)).fetchall()
        tenants: Counter[str] = Counter()
        for owner, held_bytes in owners:
            tenants[tenant_of(owner)] += held_bytes
        [(largest, _), *_] = tenants.most_common(1) or [("", 0)]
        theirs = [(held, owner) for owner, held in owners if tenant_of(owner) == largest]
        return max(theirs)[1] if theirs else None

    def _delete(self, keys: list[tuple[bytes, int]]) -> int:
        query = "DELETE FROM questions WHERE namespace = ? AND key = ? RETURNING room, held_bytes"
        deleted = 0
        for at in keys:
            for room, held_bytes in self._db.execute(query, at).fetchall():
                self._rooms[room] -= held_bytes
                deleted += 1
        return deleted

    # ------------------------------------------------------------------ forgetting

    def erase(self, erasure: Erasure) -> int:
        clauses: dict[str, tuple[object, ...]] = {
            "scope = ?": (erasure.scope,),
            "? IN (model, answered_by)": (erasure.model,),
            "(namespace, key) IN (SELECT namespace, key FROM tags WHERE tag = ?)": (erasure.tag,),
            "owner = ?": (erasure.owner,),
            "answer = ?": (erasure.answer,),
        }
        named = {clause: value for clause, value in clauses.items() if value != (None,)}
        matching = f"SELECT namespace, grp FROM questions WHERE {' AND '.join(named) or '1'}"  # noqa: S608  no input
        query = f"SELECT namespace, key FROM questions WHERE (namespace, grp) IN ({matching})"  # noqa: S608
        values = [value for (value,) in named.values()]
        with Transaction(self._db):
            deleted = self._delete(self._db.execute(query, values).fetchall())
        leave_no_trace(self._db)
        return deleted

    def sweep(self) -> None:
        """Delete what has expired or lies beyond what anybody would use; take the totals."""
        now = self._clock()
        with Transaction(self._db):
            self._db.execute("DELETE FROM questions WHERE expires_at <= ?", (now,))
            self._db.execute("DELETE FROM summaries WHERE at <= ?", (now - LIFE_S,))
            self._db.execute("DELETE FROM lessons WHERE at <= ?", (now - LIFE_S,))
            self._db.execute(_TRIM_LESSONS, (KEPT_TAIL,))
            for table in ("summaries", "lessons"):
                most = {"family": FAMILY_BYTES, "most": self._max_namespaces}
                self._db.execute(_TRIM_NAMESPACES.format(table=table), most)
            self._trim_learnt()
            query = "SELECT room, sum(held_bytes) FROM questions GROUP BY room"
            self._rooms = Counter(dict(self._db.execute(query).fetchall()))
            self._evict()

    def _trim_learnt(self) -> None:
        """To half of the whole: the largest room loses what learnt nothing for longest."""
        spaces: list[tuple[bytes, str, int]] = self._db.execute(_LEARNT).fetchall()
        rooms: Counter[str] = Counter()
        for _, room, size in spaces:
            rooms[room] += size
        self._learnt = rooms.total()
        while self._learnt > self._max_bytes // 2:
            [(largest, _)] = rooms.most_common(1)
            place = next(at for at, (_, room, _) in enumerate(spaces) if room == largest)
            namespace, _, size = spaces.pop(place)
            rooms[largest] -= size
            self._learnt -= size
            for table in ("summaries", "lessons"):
                self._db.execute(f"DELETE FROM {table} WHERE namespace = ?", (namespace,))  # noqa: S608  no input

    # ------------------------------------------------------------------ reading

    def page(self, table: str, after: int) -> list[tuple[int, bytes]]:
        """The next rows behind `after`, each with its place."""
        query = f"SELECT rowid, data FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?"  # noqa: S608
        return self._db.execute(query, (after, _PAGE)).fetchall()
