"""Where stored keys live: a file on one machine, or a Redis that gateways share.

Every gateway holds all keys in memory (authentication asks no store) and asks the store twice a
second what has changed (tenants/key_sync.py). So a store is a log of versions: each change to a key
gets the next number, and `changes(since)` returns the newest state of what changed after a number.
Keys are never deleted, only revoked: a list shows what was, and a number never goes back. A store
whose number did go back was restored or emptied; then everything is read again.

Rejected: asking the store for each request (a round trip each, and nobody gets in while it is
away); notices over pub/sub (a lost one is a key that stays open, so that polling is needed anyhow).

A change is made of what was read before, and somebody else may have changed the key meanwhile. So a
write can name what it is made of (`put`, `unless_changed`): it is done only while that is the
newest there is, in one transaction. Else a rotation that had read a key before its revocation
would open it again.

Stores are blocking and safe to call from several threads; a server calls them in a thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cache.store.sqlite_open import make_private
from gateway.tenants.key import Key

BUSY_S = 5.0
_COLUMNS = "id, tenant, secret_sha256, created_at, name, expires_at, revoked_at, used_at, replaces"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, secret_sha256 TEXT NOT NULL,
    created_at REAL NOT NULL, name TEXT NOT NULL, expires_at REAL, revoked_at REAL,
    used_at REAL, replaces TEXT, version INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS keys_by_version ON keys (version);
"""


class KeyStoreFault(Exception):
    """The store cannot be asked now. The text says which and why."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed after a version. `whole`: these are all keys there are."""

    version: int
    keys: list[Key]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A key as it was read, and the version of its last change."""

    key: Key
    version: int


class KeyStore(Protocol):
    """Every method raises KeyStoreFault when the store cannot be asked."""

    def put(self, keys: Iterable[Key], unless_changed: Found | None = None) -> bool:
        """Insert or replace, all or none; each gets a version of its own. False: `unless_changed`
        has changed since it was read, and nothing was done."""
        ...

    def find(self, key_id: str) -> Found | None: ...

    def all(self) -> list[Key]:
        """Oldest first."""
        ...

    def changes(self, since: int) -> Changes: ...

    def note_used(self, when: Mapping[str, float]) -> None:
        """When keys were last used, by id. Not a change: it gets no version."""
        ...

    def close(self) -> None: ...


class SqliteKeyStore:
    """A file, which the server and `sluice keys` open at the same time. ":memory:" is a store that
    ends with the process."""

    def __init__(self, path: Path | str) -> None:
        """Makes the file and its folder; raises KeyStoreFault."""
        self._path = path
        self._lock = threading.Lock()
        try:
            if isinstance(path, Path):
                make_private(path)
            self._db = sqlite3.connect(
                path, timeout=BUSY_S, check_same_thread=False, isolation_level=None
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._fault(error) from error

    def put(self, keys: Iterable[Key], unless_changed: Found | None = None) -> bool:
        marks = ", ".join("?" * 9)
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                if unless_changed is not None and not self._is_newest(unless_changed):
                    self._db.execute("ROLLBACK")
                    return False
                for key in keys:
                    self._db.execute(
                        f"INSERT OR REPLACE INTO keys ({_COLUMNS}, version) VALUES "  # noqa: S608
                        f"({marks}, (SELECT coalesce(max(version), 0) + 1 FROM keys))",
                        _row(key),
                    )
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._fault(error) from error
        return True

    def find(self, key_id: str) -> Found | None:
        found = self._read("WHERE id = ?", (key_id,))
        return found[0] if found else None

    def all(self) -> list[Key]:
        return [found.key for found in self._read("ORDER BY created_at, id", ())]

    def changes(self, since: int) -> Changes:
        newest = self._newest()
        if newest == since:
            return Changes(since, [])
        if newest < since:
            return Changes(newest, self.all(), whole=True)
        changed = self._read("WHERE version > ?", (since,))
        return Changes(newest, [found.key for found in changed])

    def note_used(self, when: Mapping[str, float]) -> None:
        rows = [(at, key_id) for key_id, at in when.items()]
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(
                    "UPDATE keys SET used_at = max(coalesce(used_at, 0), ?) WHERE id = ?", rows
                )
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._fault(error) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _newest(self) -> int:
        with self._lock:
            try:
                found = self._db.execute("SELECT coalesce(max(version), 0) FROM keys").fetchone()
            except sqlite3.Error as error:
                raise self._fault(error) from error
        return int(found[0])

    def _is_newest(self, found: Found) -> bool:
        row = self._db.execute("SELECT version FROM keys WHERE id = ?", (found.key.id,)).fetchone()
        return row is not None and int(row[0]) == found.version

    def _read(self, which: str, values: tuple[Any, ...]) -> list[Found]:
        query = f"SELECT {_COLUMNS}, version FROM keys {which}"  # noqa: S608
        with self._lock:
            try:
                rows = self._db.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise self._fault(error) from error
        return [Found(Key(*row[:-1]), row[-1]) for row in rows]

    def _fault(self, error: Exception) -> KeyStoreFault:
        return KeyStoreFault(
            f"The key store {self._path} cannot be used ({error}). Name a file in a folder that "
            "may be written to under `store` in [keys], or a Redis."
        )


def _row(key: Key) -> tuple[Any, ...]:
    return (key.id, key.tenant, key.secret_sha256, key.created_at, key.name, key.expires_at,
            key.revoked_at, key.used_at, key.replaces)  # fmt: skip
