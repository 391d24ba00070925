"""The account in one SQLite file, summed by minute, hour and day.

    usage(grain, at, tenant, model, origin, status, <numbers>)   one row per who and time
    lookups(grain, at, layer, result, count)                     hit rates
    times(grain, at, origin, kind, bucket, count)                latency histograms
    positions(journal, segment, offset)                          how far each journal is saved

Every grain is written at once, so a coarse one is as fresh as a fine one, and a question never has
to put two together. Sums and positions change in one transaction: a record is in the account
exactly once. Money is an integer of nano-US-dollars; 64 bits hold nine billion dollars.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.store.sqlite_open import make_private
from gateway.observe.batch import COLUMNS, FINE_S, GRAINS_S, Batch, plus
from gateway.observe.book import BookFault, Counted, Line, Query
from gateway.observe.journal import Position
from gateway.observe.rollup import Prices
from gateway.settings import LedgerSettings

BUSY_S = 5.0
FINE_KEPT_S = 3600
DAY_S = 86_400
_SUMS = ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in COLUMNS)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS usage(
  grain INTEGER, at INTEGER, tenant TEXT, model TEXT, origin TEXT, status INTEGER, {_SUMS},
  PRIMARY KEY (grain, at, tenant, model, origin, status)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lookups(
  grain INTEGER, at INTEGER, layer TEXT, result TEXT, count INTEGER NOT NULL,
  PRIMARY KEY (grain, at, layer, result)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS times(
  grain INTEGER, at INTEGER, origin TEXT, kind TEXT, bucket INTEGER, count INTEGER NOT NULL,
  PRIMARY KEY (grain, at, origin, kind, bucket)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions(
  journal INTEGER PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL);
"""
_ADD_USAGE = "INSERT INTO usage VALUES ({}) ON CONFLICT DO UPDATE SET {}".format(  # noqa: S608 - names are ours
    ", ".join("?" * (6 + len(COLUMNS))),
    ", ".join(f"{name} = {name} + excluded.{name}" for name in COLUMNS),
)
_ADD_COUNT = "INSERT INTO {} VALUES ({}) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_ADD_LOOKUP = _ADD_COUNT.format("lookups", "?, ?, ?, ?, ?")
_ADD_TIME = _ADD_COUNT.format("times", "?, ?, ?, ?, ?, ?")


class SqliteBook:
    """Used by one thread at a time. `path` None: in memory, for as long as it is open."""

    def __init__(self, path: Path | None, kept: LedgerSettings) -> None:
        self._path = path
        self._kept_s = {
            FINE_S: FINE_KEPT_S,
            60: int(kept.minute_days * DAY_S),
            3600: int(kept.hour_days * DAY_S),
            DAY_S: int(kept.day_days * DAY_S),
        }
        self._opened: sqlite3.Connection | None = None

    def open(self) -> None:
        with self._told():
            if self._path is not None:
                make_private(self._path)
            name = ":memory:" if self._path is None else str(self._path)
            self._opened = sqlite3.connect(
                name, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    # ------------------------------------------------------------------ writing

    def position(self, journal: int) -> Position | None:
        with self._told():
            found = self._db.execute(
                "SELECT segment, offset FROM positions WHERE journal = ?", (journal,)
            ).fetchone()
        return None if found is None else Position(journal, *found)

    def save(self, batch: Batch, prices: Prices, read_to: Position | None) -> None:
        with self._told(), self._transaction():
            self._db.executemany(_ADD_USAGE, _usage_rows(batch, prices))
            self._db.executemany(_ADD_LOOKUP, _counted(batch.lookups))
            self._db.executemany(_ADD_TIME, _counted(batch.times))
            if read_to is not None:
                self._db.execute(
                    "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                    (read_to.journal, read_to.segment, read_to.offset),
                )

    def forget(self, now_s: int) -> None:
        with self._told(), self._transaction():
            for grain_s, kept_s in self._kept_s.items():
                for table in ("usage", "lookups", "times"):
                    self._db.execute(
                        f"DELETE FROM {table} WHERE grain = ? AND at < ?",  # noqa: S608
                        (grain_s, now_s - kept_s),
                    )

    # ------------------------------------------------------------------ reading

    def usage(self, query: Query) -> list[Line]:
        sums = ", ".join(f"sum({name})" for name in COLUMNS)
        rows = self._ask("usage", query, query.fields, sums)
        named = 1 + len(query.fields)
        return [Line(row[0], tuple(map(str, row[1:named])), tuple(row[named:])) for row in rows]

    def lookups(self, query: Query) -> list[Counted]:
        return self._counts("lookups", query, ("layer", "result"))

    def times(self, query: Query) -> list[Counted]:
        return self._counts("times", query, ("origin", "kind", "bucket"))

    def _counts(self, table: str, query: Query, names: tuple[str, ...]) -> list[Counted]:
        rows = self._ask(table, query, names, "sum(count)")
        return [Counted(row[0], tuple(map(str, row[1:-1])), row[-1]) for row in rows]

    def _ask(
        self, table: str, query: Query, names: tuple[str, ...], sums: str
    ) -> list[tuple[Any, ...]]:
        """Names of tables and columns are ours; values are bound."""
        at = "at / :step * :step" if query.step_s else "0"
        chosen = ", ".join([f"{at} AS step", *names])
        only = "".join(f" AND {name} = :{name}" for name in query.only)
        grouped = ", ".join(["step", *names])
        statement = (
            f"SELECT {chosen}, {sums} FROM {table} WHERE grain = :grain AND at >= :start "  # noqa: S608
            f"AND at < :end{only} GROUP BY {grouped} ORDER BY {grouped}"
        )
        first = query.start - query.start % query.grain_s
        bound: dict[str, int | str] = {
            "grain": query.grain_s,
            "start": first,
            "end": query.end,
            "step": query.step_s,
            **{str(name): value for name, value in query.only.items()},
        }
        with self._told():
            return self._db.execute(statement, bound).fetchall()

    # ------------------------------------------------------------------ inside

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._opened is not None, "open() comes first"
        return self._opened

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors in our words."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise BookFault(
                f"ledger.store: {self._path} cannot be used ({error}). Name a file in a folder "
                "that may be written to, or set memory://."
            ) from error


def _usage_rows(batch: Batch, prices: Prices) -> Iterator[tuple[Any, ...]]:
    merged: dict[tuple[Any, ...], tuple[int, ...]] = {}
    for at, (tenant, model, origin, status, numbers) in batch.rows(prices):
        for grain_s in GRAINS_S:
            who = "" if grain_s == FINE_S else tenant
            key = (grain_s, at - at % grain_s, who, model, origin, status)
            merged[key] = plus(merged[key], numbers) if key in merged else numbers
    return ((*key, *numbers) for key, numbers in merged.items())


def _counted(counts: Counter[Any]) -> Iterator[tuple[Any, ...]]:
    merged: Counter[tuple[Any, ...]] = Counter()
    for (at, *names), count in counts.items():
        for grain_s in GRAINS_S:
            merged[(grain_s, at - at % grain_s, *names)] += count
    return ((*key, count) for key, count in merged.items())
