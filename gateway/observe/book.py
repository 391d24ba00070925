"""What a kept account can be asked, whoever keeps it.

One thread at a time calls it, whatever it is asked (observe/keeper.py): a book needs no locks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from gateway.observe.batch import Batch
from gateway.observe.journal import Position
from gateway.observe.rollup import Prices

Field = Literal["tenant", "model", "origin", "status"]
FIELDS: tuple[Field, ...] = ("tenant", "model", "origin", "status")


class BookFault(Exception):
    """The account cannot be read or written. The text says where and why."""


@dataclass(frozen=True, slots=True)
class Query:
    """Sums of `[start, end)` (UTC seconds, widened to whole grains), by `fields` and, if `step_s`
    is not 0, by steps of time. `only` keeps what has that tenant, model or origin."""

    start: int
    end: int
    grain_s: int
    step_s: int = 0
    fields: tuple[Field, ...] = ()
    only: Mapping[Field, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of an answer. `at` is the step's start (0 without steps); `names` are by the query's
    fields, `numbers` by batch.COLUMNS."""

    at: int
    names: tuple[str, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """How often something happened within one step of time."""

    at: int
    names: tuple[str, ...]
    count: int


class Book(Protocol):
    """Where the account is kept."""

    def open(self) -> None:
        """Raises BookFault."""
        ...

    def close(self) -> None: ...

    def position(self, journal: int) -> Position | None:
        """How far that journal has been saved; None: nothing of it."""
        ...

    def save(self, batch: Batch, prices: Prices, read_to: Position | None) -> None:
        """Add a batch and note the position, both or neither. Raises BookFault."""
        ...

    def forget(self, now_s: int) -> None:
        """Drop what is older than is kept."""
        ...

    def usage(self, query: Query) -> list[Line]: ...

    def lookups(self, query: Query) -> list[Counted]:
        """By (layer, result)."""
        ...

    def times(self, query: Query) -> list[Counted]:
        """By (origin, kind, bucket as text)."""
        ...
