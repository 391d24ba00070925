"""Stated sums are checked, and what cannot be read is not counted."""

from __future__ import annotations

import pytest

from cascade.arithmetic import Sums, check_sums


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("16 - 3 - 4 = 9", 1, 0),
        ("3 × 4 = 13", 0, 1),
        ("12+5*3+4*1.5=33", 1, 0),
        ("1,350 + 2,100 = 3,450", 1, 0),
        ("9 eggs * $2 = $<<9*2=18>>18", 1, 0),
        ("$9 * $2 = $18", 1, 0),
        ("10 / 3 = 3.33", 1, 0),
        ("10 / 3 = 3", 0, 1),
        ("7 / 0 = 0", 0, 0),
        ("1/2 + 1/2 = 1/1", 0, 0),
        ("x = 4", 0, 0),
        ("-6 + 3 = -3", 0, 0),
        ("(2 + 3) * 4 = 20", 0, 0),
        ("2 + 2 = 4. So 4 + 4 = 9.", 1, 1),
        ("no sums here", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_sum_holds_or_does_not(text: str, right: int, wrong: int) -> None:
    assert check_sums(text) == Sums(right, wrong)


def test_only_the_end_of_a_long_text_is_read() -> None:
    assert check_sums("1 + 1 = 3 " + "y" * 10_000 + " 1 + 1 = 2") == Sums(1, 0)


def test_a_hostile_text_takes_no_time() -> None:
    """Backtracking is bounded: this returns at once, or the test run hangs."""
    assert check_sums("1+" * 4000 + "=") == Sums(0, 0)
