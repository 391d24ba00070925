"""What the numbers of a question go on with, if they are a row that everybody knows.

A constant difference, a constant factor, a constant change of the difference, or each the sum of
the two before: anything else is not guessed at. Like a plain sum (arithmetic.py), such a question
proves its answer right or wrong without asking anybody; whether going on was what was asked is for
the fitted model to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

LEAST, MOST = 3, 50
"""Numbers in a row; two are one by chance, and a long text's are none."""


def next_number(row: Sequence[float]) -> float | None:
    """None: it is no row."""
    if not LEAST <= len(row) <= MOST:
        return None
    steps = [after - before for before, after in pairwise(row)]
    if _alike(steps):
        return row[-1] + steps[-1]
    if all(row):
        factors = [after / before for before, after in pairwise(row)]
        if _alike(factors):
            return row[-1] * factors[-1]
    return _longer(row, steps) if len(row) > LEAST else None


def _longer(row: Sequence[float], steps: Sequence[float]) -> float | None:
    """What three numbers would be by chance."""
    turns = [after - before for before, after in pairwise(steps)]
    if _alike(turns):
        return row[-1] + steps[-1] + turns[-1]
    if all(_alike((a + b, c)) for a, b, c in zip(row, row[1:], row[2:], strict=False)):
        return row[-1] + row[-2]
    return None


def _alike(values: Sequence[float]) -> bool:
    low, high = min(values), max(values)
    return high - low <= 1e-9 * max(1.0, abs(low), abs(high))
