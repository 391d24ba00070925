"""From what an operator asks of the account to one answer, with its totals.

The grain is the finest that is kept for the whole range and does not make more rows than anybody
reads: minutes for two hours, hours for two weeks, days beyond. A range is widened to whole grains,
and the answer says to which.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.observe.batch import COLUMNS, plus
from gateway.observe.book import Book, Line, Query
from gateway.observe.rollup import TECHNIQUES

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
STEPS_S = {"total": 0, "minute": MINUTE_S, "hour": HOUR_S, "day": DAY_S}
FEW_MINUTES_S = 2 * HOUR_S
FEW_HOURS_S = 14 * DAY_S
NANO = 1_000_000_000
MOST_LINES = 50_000

MONEY = ("counterfactual", "spent", "waste", *(f"avoided_{by}" for by in TECHNIQUES))


class TooMuch(ValueError):
    """More rows than one answer holds."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`start` and `end` as they were widened, UTC seconds."""

    start: int
    end: int
    query: Query
    lines: list[Line]

    @property
    def totals(self) -> tuple[int, ...]:
        numbers = (0,) * len(COLUMNS)
        for line in self.lines:
            numbers = plus(numbers, line.numbers)
        return numbers


def grain_for(start: int, end: int, step_s: int) -> int:
    """The grain whose sums answer it."""
    if step_s:
        return step_s
    span_s = end - start
    return MINUTE_S if span_s <= FEW_MINUTES_S else HOUR_S if span_s <= FEW_HOURS_S else DAY_S


def answer(book: Book, query: Query) -> Answer:
    """Raises BookFault, TooMuch."""
    start = query.start - query.start % query.grain_s
    end = -(-query.end // query.grain_s) * query.grain_s
    lines = book.usage(query)
    if len(lines) > MOST_LINES:
        raise TooMuch(
            f"{len(lines)} rows are more than the {MOST_LINES} of one answer: ask for a shorter "
            "range, longer steps, or fewer names in `by`."
        )
    return Answer(start, end, query, lines)


def as_csv(found: Answer, part: str = "") -> str:
    """One row a line, with the fields of the JSON's; money in US dollars, to the last nano-dollar.
    `part`, last: whose account it is, as a word."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    at = ["time"] if found.query.step_s else []
    numbers = [f"{name}_usd" if name in MONEY else name for name in COLUMNS]
    writer.writerow([*at, *found.query.fields, *numbers, "part"])
    for line in found.lines:
        shown = [iso(line.at)] if found.query.step_s else []
        writer.writerow([*shown, *map(_harmless, line.names), *_shown(line.numbers), part])
    return written.getvalue()


def iso(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def usd(nano: int) -> str:
    """An integer of nano-dollars as a decimal number, without a rounding."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{part:09d}"


def _shown(numbers: Iterable[int]) -> list[str]:
    pairs = zip(COLUMNS, numbers, strict=True)
    return [usd(number) if name in MONEY else str(number) for name, number in pairs]


def _harmless(name: str) -> str:
    """A spreadsheet takes a cell that begins so for a formula."""
    return f"'{name}" if name[:1] in {"=", "+", "-", "@", "\t", "\r"} else name
