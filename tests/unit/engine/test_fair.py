from __future__ import annotations

import pytest

from engine.fair import Fair


def test_tokens_count_by_weight_and_share() -> None:
    fair = Fair(input_weight=1.0, output_weight=2.0)
    fair.begin("a", 1.0)
    fair.begin("b", 4.0)
    fair.charge_input("a", 100)
    fair.charge_input("b", 100)
    fair.charge_outputs(["a", "b", "b"])
    assert fair.level("a") == 102.0
    assert fair.level("b") == 26.0


def test_a_newcomer_is_lifted_to_the_least_served_that_waits() -> None:
    fair = Fair()
    fair.begin("a", 1.0)
    fair.begin("b", 1.0)
    fair.charge_input("a", 50)
    fair.charge_input("b", 70)
    fair.begin("c", 1.0)
    assert fair.level("c") == 50.0


def test_one_who_was_away_gets_no_credit_for_it() -> None:
    fair = Fair()
    fair.begin("a", 1.0)
    fair.end("a")
    fair.begin("b", 1.0)
    fair.charge_input("b", 1000)
    fair.begin("a", 1.0)
    assert fair.level("a") == fair.level("b") == 1000.0


def test_lifting_never_lowers() -> None:
    fair = Fair()
    fair.begin("a", 1.0)
    fair.charge_input("a", 500)
    fair.end("a")
    fair.begin("b", 1.0)
    fair.begin("a", 1.0)
    assert fair.level("a") == 500.0


def test_when_nobody_waits_a_newcomer_starts_where_the_last_one_left() -> None:
    fair = Fair()
    fair.begin("a", 1.0)
    fair.charge_input("a", 300)
    fair.end("a")
    fair.begin("b", 1.0)
    assert fair.level("b") == 300.0


def test_going_on_waiting_is_not_a_return() -> None:
    fair = Fair()
    fair.begin("a", 1.0)
    fair.begin("b", 1.0)
    fair.charge_input("b", 10)
    fair.begin("a", 1.0)
    assert fair.level("a") == 0.0


def test_a_share_of_nothing_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        Fair().begin("a", 0.0)
