"""Opening the SQLite files of the caches, and what becomes of one that cannot be read.

A file that is not ours to read (rubbish, torn by a disk, another schema) is moved aside and a new
one is begun: a cache can be lost but must not stop a server. It is kept, under a name that says
when, for whoever wants to know why.

In WAL mode a transaction is in the file wholly or not at all, and one that was committed survives
the death of the process (`synchronous=NORMAL`: only a loss of power may take the last ones).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, TypeAlias

_BROKEN: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

OnEvent: TypeAlias = Callable[[str], None]
"""Told in words what an operator should know: a file moved aside, a batch lost."""


class WrongSchemaError(Exception):
    """The file was written by another version of this program."""


def is_broken(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in _BROKEN


def check_usable(path: Path) -> None:
    """Raises OSError or sqlite3.Error where no cache file can be made or written to. One that is
    broken or busy will do: it is moved aside, or waited for."""
    make_private(path)
    try:
        with closing(connect(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        if not is_broken(error) and getattr(error, "sqlite_errorcode", None) not in _BUSY:
            raise


def make_private(path: Path) -> None:
    """The folder, and a new file that only its owner may read; SQLite gives its companions the same
    mode. One that is there keeps its own. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=2.0, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def open_file(path: Path, schema: str, version: int) -> sqlite3.Connection:
    """The file as it is, or a new one with this schema. Raises WrongSchemaError for another
    version's, sqlite3.DatabaseError (see `is_broken`) or OSError."""
    make_private(path)
    connection = connect(path)
    try:
        _prepare(connection, schema, version)
    except BaseException:
        connection.close()
        raise
    return connection


def open_or_start_afresh(open_it: Callable[[], None], start_afresh: Callable[[str], None]) -> None:
    """What to do with a file that cannot be read, told why. Other errors are raised."""
    try:
        open_it()
    except WrongSchemaError as error:
        start_afresh(str(error))
    except sqlite3.DatabaseError as error:
        if not is_broken(error):
            raise
        start_afresh(f"it cannot be read ({error})")


def leave_no_trace(connection: sqlite3.Connection) -> None:
    """What was erased goes out of the write-ahead log, too, unless a reader still needs that; then
    the next erasure, or closing, does it. `secure_delete` overwrites it in the file itself."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _prepare(connection: sqlite3.Connection, schema: str, version: int) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found == 0 and tables == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {version}; COMMIT;"
        )
    elif found != version:
        raise WrongSchemaError(f"its schema is {found}, not {version}")


def move_aside(path: Path, now: float) -> Path:
    """Rename the file and what belongs to it; the new name."""
    aside = path.with_name(f"{path.name}.aside-{int(now)}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    return aside


class Transaction:
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
    with closing(connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
