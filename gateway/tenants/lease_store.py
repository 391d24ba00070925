"""What of a budget is used, kept where every gateway sees it: a file, or a Redis that they share.

An account is one tenant's budget of one period. Its whole state is how much is used, and that is
counted when it is leased, not when it is spent:

    take   used += granted         only as much as is free
    give   used −= what came back  only by who holds the lease, and no more than it holds

So there is nothing to expire: what a dead gateway had leased is used, in full, and stays so. And a
lost reply does no harm: every move on a lease has a turn, and asking the same turn again returns
what was granted then, instead of granting twice.

A grant lies between `least` and `most`: near the end of a budget it shrinks, so that what is left
is dealt out in small pieces instead of lying idle with one gateway.

Rejected: a round trip for each request (0.3 ms each, and no answer while Redis is away); counting
when spent (gateways that do not know of each other's running requests overspend by all of them);
leases that expire and come back (a gateway that was only slow would have spent them as well); the
`limits` library (its counters only go up: no settling, and no turn to ask again).

Amounts are whole nano-US-dollars, below 2^53, because Lua counts in doubles.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cache.store.sqlite_open import make_private

BUSY_S = 1.0
KEPT_S = 40 * 86_400.0
"""How long an account is kept after its period has ended."""
LEFT_FOR_OTHERS = 4
"""Beyond what is needed at once, a grant is at most this part of what is free."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    account TEXT PRIMARY KEY, used INTEGER NOT NULL, ends_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS leases (
    account TEXT, lease TEXT, amount INTEGER NOT NULL, turn INTEGER NOT NULL,
    granted INTEGER NOT NULL, PRIMARY KEY (account, lease)
);
"""


class LeaseStoreFault(Exception):
    """The store cannot be asked now. The text says which and why."""


@dataclass(frozen=True, slots=True)
class Account:
    """`ends_at`: when the period is over, in seconds since the epoch; `kept_s`: how long after that
    it is remembered."""

    name: str
    limit: int
    ends_at: float
    kept_s: float = KEPT_S


@dataclass(frozen=True, slots=True)
class Move:
    """One turn of a lease: give back, then take at least `least` (or nothing) and up to `most`.
    `beyond`: take it whatever the limit says; it has been spent already."""

    lease: str
    turn: int
    give: int = 0
    least: int = 0
    most: int = 0
    beyond: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """What was granted, and what of the account is used after it, all leases included."""

    granted: int
    used: int


class LeaseStore(Protocol):
    """Blocking, safe to call from several threads; raises LeaseStoreFault."""

    def move(self, account: Account, move: Move) -> Moved: ...

    def used(self, account: Account) -> int: ...

    def close(self) -> None: ...


def grant(free: int, move: Move) -> int:
    """How much of what is free is granted."""
    if move.beyond:
        return move.most
    if free < move.least or free <= 0:
        return 0
    return min(move.most, free, move.least + (free - move.least) // LEFT_FOR_OTHERS)


class SqliteLeaseStore:
    """A file for the gateways of one machine. ":memory:" ends with the process."""

    def __init__(self, path: Path | str) -> None:
        """Makes the file and its folder; raises LeaseStoreFault."""
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
            self._forget_old()
        except (OSError, sqlite3.Error) as error:
            raise self._fault(error) from error

    def move(self, account: Account, move: Move) -> Moved:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                moved = self._move(account, move)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._fault(error) from error
        return moved

    def used(self, account: Account) -> int:
        with self._lock:
            try:
                return self._used(account.name)
            except sqlite3.Error as error:
                raise self._fault(error) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _move(self, account: Account, move: Move) -> Moved:
        used = self._used(account.name)
        found = self._db.execute(
            "SELECT amount, turn, granted FROM leases WHERE account = ? AND lease = ?",
            (account.name, move.lease),
        ).fetchone()
        amount, turn, before = found or (0, 0, 0)
        if turn == move.turn:
            return Moved(before, used)
        back = min(move.give, amount)
        granted = grant(account.limit - used + back, move)
        used += granted - back
        self._db.execute(
            "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?)",
            (account.name, used, account.ends_at),
        )
        self._db.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?)",
            (account.name, move.lease, amount - back + granted, move.turn, granted),
        )
        return Moved(granted, used)

    def _used(self, account: str) -> int:
        found = self._db.execute(
            "SELECT used FROM accounts WHERE account = ?", (account,)
        ).fetchone()
        return int(found[0]) if found else 0

    def _forget_old(self) -> None:
        self._db.execute("DELETE FROM accounts WHERE ends_at < unixepoch('subsec') - ?", (KEPT_S,))
        self._db.execute("DELETE FROM leases WHERE account NOT IN (SELECT account FROM accounts)")

    def _fault(self, error: Exception) -> LeaseStoreFault:
        return LeaseStoreFault(
            f"The budgets' store {self._path} cannot be used ({error}). Name a file in a folder "
            "that may be written to under `store` in [limits], or a Redis."
        )
