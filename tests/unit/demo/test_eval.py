"""The measures: intervals, repetition, tables."""

import pytest

from demo.eval import Share, loops, percent, says_twice, table, tally


def test_wilson_interval_of_a_known_case() -> None:
    found = Share(8, 10).result()
    assert found["share"] == pytest.approx(0.8)
    assert found["low"] == pytest.approx(0.4902, abs=1e-3)
    assert found["high"] == pytest.approx(0.9433, abs=1e-3)


def test_no_rows_have_no_share() -> None:
    assert percent(Share(0, 0).result()) == "-"


def test_tally_counts_by_key() -> None:
    found = tally([(1, True), (1, False), (2, True)])
    assert found["1"]["share"] == 0.5
    assert found["2"]["n"] == 1


@pytest.mark.parametrize(
    ("reply", "twice", "loop"),
    [
        ("The cat is on the mat. The cat is on the mat.", True, False),
        ("He is a part of it and he is a part of it and he is a part of it", False, True),
        ("Yes. Yes. Yes.", False, False),
        ("It is red. It is blue. It is a long sentence about nothing.", False, False),
        ("", False, False),
    ],
)
def test_a_reply_repeats_itself_or_not(reply: str, twice: bool, loop: bool) -> None:
    assert says_twice(reply) is twice
    assert loops(reply) is loop


def test_the_table_names_every_level() -> None:
    share = Share(1, 2).result()
    tasks = {"all": share, "levels 4-5": share, "level": {"1": share}, "family": {"add": share}}
    model = {
        "tasks": {**tasks, "ended": share},
        "chat": {
            "ended": share,
            "repeats a sentence": share,
            "repeats a sentence or loops": share,
            "loss": {"loss": 1.0},
        },
        "text": {"bits per byte": 1.0},
    }
    shown = table({"large": model, "small": model, "agreement": {"chat": share}})
    assert "| level 1 | 50.0 %" in shown
    assert "| agreement on chat |" in shown
