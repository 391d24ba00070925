"""The task generator: exact answers, a fair split, workings that end in the answer."""

import random
from pathlib import Path

import pytest

from demo import tasks
from demo.data import read_rows

EVALUATION = Path("demo/evalset/tasks.jsonl.zst")
CELLS = [(f, lv) for f in tasks.FAMILIES for lv in tasks.LEVELS]


@pytest.mark.parametrize(("family", "level"), CELLS)
def test_every_reply_that_is_taught_passes_its_own_check(family: str, level: int) -> None:
    r = random.Random(1)
    for _ in range(20):
        row = tasks.row(r, family, level, "train")
        assert tasks.check(row["messages"][1]["content"], row["answer"])


def test_only_the_text_after_the_last_answer_counts() -> None:
    assert tasks.check("2 + 2 = 4\nAnswer: 4.", "4")
    assert tasks.check("  Paris ", "paris")
    assert not tasks.check("Answer: 4\nAnswer: 5", "4")
    assert not tasks.check("The answer may be 4", "4")


def test_training_never_draws_a_held_out_question() -> None:
    held_out = {
        row["messages"][0]["content"]
        for row in read_rows(EVALUATION)
        if tasks.held_out(row["family"], row["messages"][0]["content"])
    }
    drawn = tasks.training_rows(3, 4000, (1, 1, 1, 1, 1))
    closed = {"geo", "element", "units", "dates"}
    seen = [
        row["messages"][0]["content"]
        for row in drawn
        if row["level"] > 1 and row["family"] not in closed
    ]
    assert not held_out & set(seen)


def test_the_held_out_set_has_every_family_and_level() -> None:
    cells = {(row["family"], row["level"]) for row in read_rows(EVALUATION)}
    assert cells == set(CELLS)


def test_a_seed_gives_the_same_rows() -> None:
    first = list(tasks.training_rows(5, 50, (1, 1, 1, 1, 1)))
    assert first == list(tasks.training_rows(5, 50, (1, 1, 1, 1, 1)))


@pytest.mark.parametrize("level", tasks.LEVELS)
def test_a_tracked_thing_is_followed_to_its_place(level: int) -> None:
    r = random.Random(level)
    for _ in range(50):
        row = tasks.row(r, "track", level, "train")
        working = row["messages"][1]["content"].split("\nAnswer:")[0]
        question = row["messages"][0]["content"]
        assert all(f"{s.strip('.')}." in question for s in working.split(". "))
