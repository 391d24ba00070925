"""Stated sums are checked, and what cannot be read is not counted."""

from __future__ import annotations

import pytest

from cascade.arithmetic import Sums, check_result, check_sums


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


@pytest.mark.parametrize(
    ("question", "result", "right"),
    [
        ("Calculate 523 * 45.", "23535", True),
        ("43667 + 19935 =", "63,602", True),
        ("What is 12 + 30?", "The sum is 43.", False),
        ("Add 69861 and 15940.", "84801", False),
        ("Multiply 33 by 64.", "2112", True),
        ("Subtract 3 from 8", "5", True),
        ("What is the difference of 3 and 8?", "-5", True),
        ("What is 7 plus 5?", "12", True),
        ("What is 84 divided by 4?", "twenty", False),
        ("8 / 0", "0", None),
        ("12", "12", None),
        ("Is 2 + 2 more than 3?", "4", None),
        ("(2 + 3) * 4", "20", None),
        ("2 + 3 * (4 + 1)", "17", None),
        ("Add 1 and 2 and 3", "6", None),
        ("2 plus 3 times 4", "14", None),
        ("Who won on 3-4-2020?", "nobody", None),
        ("How many cups are left?", "4", None),
    ],
)
def test_the_answer_to_a_plain_sum_is_proved(
    question: str, result: str, right: bool | None
) -> None:
    assert check_result(question, result) is right
