"""A row that everybody knows goes on; anything else is not guessed at."""

from __future__ import annotations

import pytest

from cascade.next_number import next_number


@pytest.mark.parametrize(
    ("row", "following"),
    [
        ((112, 100, 88, 76), 64),
        ((3, 6, 12), 24),
        ((81, -27, 9), -3),
        ((0.5, 0.75, 1.0), 1.25),
        ((1, 2, 4, 7, 11), 16),
        ((2, 3, 5, 8, 13), 21),
        ((5, 5, 5), 5),
    ],
)
def test_a_known_row_goes_on(row: tuple[float, ...], following: float) -> None:
    assert next_number(row) == pytest.approx(following)


@pytest.mark.parametrize(
    "row",
    [(), (1, 2), (1, 2, 4.5), (7, 3, 9, 1), (0, 1, 3), tuple(range(51)), (0.0, 0.0, 1e300, 5.0)],
)
def test_what_is_no_row_is_not_guessed_at(row: tuple[float, ...]) -> None:
    assert next_number(row) is None
