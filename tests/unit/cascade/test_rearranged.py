"""What an answer keeps of its question is seen, whatever was asked for."""

from __future__ import annotations

import pytest

from cascade.rearranged import NAMES, Parts, kept, parts_of


def seen(question: str, answer: str) -> dict[str, float]:
    return dict(zip(NAMES, kept(question, parts_of(answer)), strict=True))


@pytest.mark.parametrize(
    ("answer", "working", "result"),
    [
        ("42", "", "42"),
        ("Answer: 42", "", "42"),
        ("6 * 7 = 42\nThe final answer is 42", "6 * 7 = 42", "42"),
        ("a\nb\n result: c \n", "a\nb", "c"),
        ("answers vary", "", "answers vary"),
        ("", "", ""),
    ],
)
def test_the_last_line_is_the_result(answer: str, working: str, result: str) -> None:
    assert parts_of(answer) == Parts(working, result)


def test_a_word_that_the_question_does_not_hold_is_counted() -> None:
    asked = "Sort these words: pear, fig, plum"
    assert seen(asked, "fig, pear, plum")["words_of_its_own"] == 0.0
    wrong = seen(asked, "fig, pear, pear, lime")
    assert wrong["words_of_its_own"] == 2.0, "pear is there once only"
    assert wrong["words_from_question"] == 0.5


def test_an_unsorted_list_is_told_from_a_sorted_one_as_words_and_as_numbers() -> None:
    assert seen("?", "ant, bee, cow")["list_rising"] == 1.0
    assert seen("?", "bee, ant, cow")["list_rising"] == 0.0
    rising = seen("?", "9, 80, 1,000")
    assert rising["list_rising"] == 1.0, "as numbers, though not as words"
    assert rising["list_items"] == 3.0
    assert seen("?", "80, 9")["list_falling"] == 1.0


def test_letters_that_are_kept_and_letters_that_turned_round() -> None:
    asked = 'Write the word "planet" backwards.'
    right, wrong = seen(asked, "p-l-a-n-e-t\nAnswer: tenalp"), seen(asked, "Answer: tenapl")
    assert right["backwards"] == right["same_letters"] == 1.0
    assert wrong["backwards"] == 0.0
    assert wrong["same_letters"] == 1.0
    assert seen(asked, "tenal")["same_letters"] == 0.0


def test_where_the_result_stands_among_the_numbers_of_the_question() -> None:
    asked = "Which is largest: 406, 645, 522?"
    assert seen(asked, "645")["result_rank"] == pytest.approx(2.5 / 3)
    assert seen(asked, "406")["result_rank"] == pytest.approx(0.5 / 3)
    assert seen(asked, "none")["result_rank"] == -1.0


def test_a_result_that_is_not_what_was_worked_out_is_seen() -> None:
    assert seen("?", "45 + 3 = 48\nAnswer: 48")["ends_as_working"] == 1.0
    assert seen("?", "45 + 3 = 48\nAnswer: 84")["ends_as_working"] == -1.0
    assert seen("?", "48")["ends_as_working"] == 0.0


@pytest.mark.parametrize("text", ["", "\n", "½ ٣ 一", "9" * 5000, ", ; ,", "-" * 9000])
def test_any_text_gives_finite_numbers(text: str) -> None:
    assert all(abs(value) < 1e6 for value in kept(text, parts_of(text)))


def test_numbers_keep_their_signs_beside_those_without() -> None:
    assert seen("7 and -7", "-7")["result_rank"] == 0.25
    assert seen("7 and 9", "9")["result_rank"] == 0.75


def test_statements_that_stand_in_the_question_are_told_from_invented_ones() -> None:
    asked = "Hana picks up the ball. Wendy gives the key to  Paul. Where is the ball?"
    right = seen(asked, "Hana picks up the ball. Wendy gives the key to Paul.\nAnswer: attic")
    assert (right["statements_kept"], right["statements_invented"]) == (2.0, 0.0)
    wrong = seen(asked, "Wendy picks up the ball.\nAnswer: attic")
    assert (wrong["statements_kept"], wrong["statements_invented"]) == (0.0, 1.0)
    assert seen(asked, "the attic")["statements_invented"] == 0.0, "too short to be a statement"


def test_a_result_that_goes_on_with_the_questions_numbers_is_told_from_another() -> None:
    asked = "Next number: 112, 100, 88, 76, ?"
    assert seen(asked, "76 - 12 = 64\nAnswer: 64")["result_goes_on"] == 1.0
    assert seen(asked, "54")["result_goes_on"] == -1.0
    assert seen(asked, "none")["result_goes_on"] == 0.0
    assert seen("What is 7, 3 and 12?", "22")["result_goes_on"] == 0.0, "no row"


def test_a_result_that_counts_the_questions_list_is_told_from_another() -> None:
    asked = "How many words are in this list: fig, pear, plum, pear?"
    assert seen(asked, "4")["result_counts_list"] == 1.0
    assert seen(asked, "fig 1, pear 2, plum 3\nAnswer: 3")["result_counts_list"] == -1.0
    assert seen("How many are a fig, and a pear?", "2")["result_counts_list"] == 0.0
