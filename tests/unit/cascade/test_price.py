"""Costs are whole nano-dollars, and estimates stay within what is asked."""

from __future__ import annotations

import pytest

from cascade.price import ExpectedLength, Price, estimate_prompt_tokens
from engine.contract import Call, Message, Part, Usage
from tests.support.routing import chat, question_of


def test_a_dollar_per_million_tokens_is_a_thousand_nano_dollars_each() -> None:
    price = Price.per_mtok(0.5, 2.0, 0.05)
    assert (price.input_nano, price.output_nano, price.cached_nano) == (500, 2000, 50)
    assert price.of(1000, 10) == 500_000 + 20_000
    assert price.of(1000, 10, 400) == 300_000 + 20_000 + 20_000
    assert price.of_usage(Usage(1000, 10, 400)) == price.of(1000, 10, 400)


def test_cached_tokens_cost_the_same_where_no_price_is_named() -> None:
    assert Price.per_mtok(1.0, 1.0).of(10, 0, 10) == 10_000


def test_the_expected_length_follows_the_answers_and_the_limit() -> None:
    lengths, call = ExpectedLength(start_tokens=100.0), Call("chat", "m", "s")
    assert lengths.expect("m", call) == 100
    for _ in range(400):
        lengths.learn("m", 10)
    assert lengths.expect("m", call) == 11
    assert lengths.expect("m", Call("chat", "m", "s", max_tokens=5)) == 5


def test_prompt_tokens_are_counted_where_they_are_known() -> None:
    assert estimate_prompt_tokens(Call("text", "m", "s", prompt=(1, 2, 3))) == 3
    assert estimate_prompt_tokens(Call("text", "m", "s", prompt="x" * 40)) == 10
    message = Message("user", (Part("text", "x" * 40),))
    assert estimate_prompt_tokens(Call("chat", "m", "s", messages=(message,))) == 14


@pytest.mark.parametrize(
    ("nano", "told"),
    [(90, "0.09"), (4_567, "4.57"), (99_400, "99.4"), (415_000, "415"), (4_150_000, "4,150")],
)
def test_costs_are_told_in_figures_that_people_read(nano: int, told: str) -> None:
    question = question_of(chat("Hello"), small_nano=nano, large_nano=nano)
    assert question.costs == f"expected cost {told} µ$ small, {told} µ$ large"
