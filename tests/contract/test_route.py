"""Every policy keeps the same rules, whatever it prefers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cascade.conversation import Standing, Turn
from cascade.judge import Answered
from cascade.promise import Cut, Promise
from cascade.routes.base import Route
from cascade.routes.budget import Budget, MoneyMeter, ShareMeter
from cascade.routes.cautious import Cautious
from cascade.routes.fixed import fixed
from cascade.routes.latency import Latency
from cascade.routes.learned import Quality, Scorer
from tests.support.recordings import FakeClock
from tests.support.routing import CODE_GAINS, UNSURE_GAINS, chat, question_of, verdict_of

PLAIN, CODE = "What is the capital of France?", "Mend this: ```x = ```"


def quality(judge: bool = True, cut: float = 0.0) -> Quality:
    found = Cut(cut, True, 500, 0.05, 0.008, 0.4)
    return Quality(Scorer(CODE_GAINS, UNSURE_GAINS if judge else None), Promise(0.01), found)


ROUTES: dict[str, Callable[[], Route]] = {
    "fixed": lambda: fixed("large"),
    "cautious": Cautious,
    "quality": quality,
    "quality before token 1": lambda: quality(judge=False),
    "budget by share": lambda: Budget(CODE_GAINS, ShareMeter(0.5)),
    "budget by money": lambda: Budget(CODE_GAINS, MoneyMeter(1_000_000, FakeClock())),
    "latency": lambda: Latency(quality(), 1.0, lambda _: 0.1),
}


JUDGING = ("cautious", "quality", "latency")
"""Those that try small and look at its answer."""


@pytest.fixture(params=list(ROUTES))
def make_route(request: pytest.FixtureRequest) -> Callable[[], Route]:
    return ROUTES[request.param]


def test_a_choice_names_one_of_the_two_and_says_why(make_route: Callable[[], Route]) -> None:
    for text in (PLAIN, CODE, "", "x" * 5000):
        choice = make_route().before(question_of(chat(text)))
        assert choice.model in {"small", "large"}
        assert choice.reason
        assert not (choice.judged and choice.model != "small")


def test_the_same_question_gets_the_same_choice(make_route: Callable[[], Route]) -> None:
    asked = question_of(chat(CODE))
    assert make_route().before(asked) == make_route().before(asked)


@pytest.mark.parametrize("name", JUDGING)
def test_a_judged_answer_gets_a_final_choice(name: str) -> None:
    route, asked = ROUTES[name](), question_of(chat(PLAIN))
    assert route.before(asked).judged
    for answer in (Answered("Paris", (-0.01,), "stop"), Answered("Par", (-3.0,), "length")):
        choice = route.after(asked, (verdict_of(answer),))
        assert choice.model in {"small", "large"}
        assert not choice.judged


@pytest.mark.parametrize("name", JUDGING)
def test_a_broken_answer_is_escalated(name: str) -> None:
    route, asked = ROUTES[name](), question_of(chat(PLAIN))
    assert route.before(asked).judged
    broken = verdict_of(Answered("{", (-0.01,), "stop"), "the answer is not JSON")
    choice = route.after(asked, (broken,))
    assert choice.model == "large"
    assert "not JSON" in choice.reason


def test_needs_and_hold_are_told_before_anything_is_asked(
    make_route: Callable[[], Route],
) -> None:
    route = make_route()
    assert route.needs <= {"before", "embedding"}
    assert route.hold_tokens is None or route.hold_tokens >= 0
    assert route.whole_tokens >= 0


# ------------------------------------------------------------------ each policy's own


def test_quality_sends_the_clear_gain_to_large_at_once_and_tries_small_else() -> None:
    route = quality()
    assert route.before(question_of(chat(CODE))).model == "large"
    tried = route.before(question_of(chat(PLAIN)))
    assert (tried.model, tried.judged) == ("small", True)
    assert "gain" in tried.reason
    assert "cut" in tried.reason
    assert "≤ 1 points" in tried.reason


def test_quality_keeps_what_is_judged_good_and_escalates_the_rest() -> None:
    route, asked = quality(), question_of(chat(PLAIN))
    good, bad = Answered("Paris", (-0.01,), "stop"), Answered("Pa", (-0.01,), "length")
    assert route.after(asked, (verdict_of(good),)).model == "small"
    assert route.after(asked, (verdict_of(bad),)).model == "large"
    assert route.after(asked, (verdict_of(good), verdict_of(bad))).model == "large", "n choices"


def test_quality_without_a_promise_is_always_large() -> None:
    none = Cut(-math.inf, False, 20, 1.0, 0.0, 1.0)
    route = Quality(Scorer(CODE_GAINS), Promise(0.01), none)
    choice = route.before(question_of(chat(PLAIN)))
    assert choice.model == "large"
    assert "20 labels are too few" in choice.reason


def test_quality_without_its_embedding_is_safe() -> None:
    block = replace(CODE_GAINS.blocks[0], name="embedding")
    needs_vector = replace(CODE_GAINS, blocks=(block,))
    route = Quality(Scorer(needs_vector), Promise(0.01), Cut(0.0, True, 500, 0.0, 0.0, 0.5))
    choice = route.before(question_of(chat(PLAIN)))
    assert choice.model == "large"
    assert "no embedding" in choice.reason


def test_quality_takes_large_where_it_costs_no_more() -> None:
    choice = quality().before(question_of(chat(PLAIN), small_nano=100, large_nano=90))
    assert choice.model == "large"
    assert "costs no more" in choice.reason


def test_a_conversation_comes_down_only_well_below_the_cut() -> None:
    """The plain question's gain is a little under −0.48."""
    with_large = Standing(Turn.LATER, "large")
    for cut, model in ((-0.46, "large"), (-0.40, "small")):
        route = quality(cut=cut)
        assert route.before(question_of(chat(PLAIN), standing=with_large)).model == model
        assert route.before(question_of(chat(PLAIN))).model == "small"


@pytest.mark.parametrize(
    ("answer", "doubt"),
    [
        (Answered("Paris", (-0.01, -0.005), "stop"), ""),
        (Answered("Paris is", (-0.001,) * 32), "long answer"),
        (Answered("Paris", (), "stop"), "no log-probabilities"),
        (Answered("Paris", (-0.01, -2.0, *[-0.001] * 30), "stop"), "-2.00"),
        (Answered("Paris", (-0.05, -0.05), "stop"), "mean log-probability"),
        (Answered("2 + 2 = 5", (-0.01,), "stop"), "wrong"),
        (Answered("Perhaps Paris", (-0.01,), "stop"), "hedges"),
        (Answered("Paris", (-0.01,), "length"), "cut off"),
    ],
)
def test_the_uncalibrated_keep_only_what_is_plainly_sure(answer: Answered, doubt: str) -> None:
    choice = Cautious().after(question_of(chat(PLAIN)), (verdict_of(answer),))
    assert choice.model == ("large" if doubt else "small")
    assert doubt in choice.reason
    assert "uncalibrated" in choice.reason


@pytest.mark.parametrize("limit", [0.1, 0.3])
def test_a_share_is_never_exceeded_and_goes_to_the_highest_gains(limit: float) -> None:
    route = Budget(CODE_GAINS, ShareMeter(limit, burst=5))
    rng = np.random.default_rng(0)
    asked = [CODE if rng.random() < 0.1 else PLAIN for _ in range(1000)]
    chosen = [route.before(question_of(chat(text))).model for text in asked]
    large = [text for text, model in zip(asked, chosen, strict=True) if model == "large"]
    assert 0.05 * 1000 < len(large) <= limit * 1000 + 5
    assert set(large) == {CODE}, "a gain below nothing is not worth any budget"


def test_a_budget_in_dollars_refills_with_time() -> None:
    clock = FakeClock()
    per_day = 86_400 * 100  # 100 nano-USD a second, large costs 1,000
    route = Budget(CODE_GAINS, MoneyMeter(per_day, clock, burst_s=20.0))
    asked = question_of(chat(CODE), large_nano=1000)

    def ask() -> str:
        return route.before(asked).model

    assert [ask(), ask()] == ["large", "small"]
    clock.now += 10.0
    assert [ask(), ask()] == ["large", "small"]
    clock.now += 1000.0
    assert [ask() for _ in range(4)] == ["large", "large", "small", "small"]


def test_a_slow_large_model_spills_and_says_that_it_promises_nothing() -> None:
    waits = {"small": 0.2, "large": 5.0}
    route = Latency(quality(), 1.0, waits.__getitem__)
    choice = route.before(question_of(chat(CODE)))
    assert choice.model == "small"
    assert "spilled" in choice.reason
    assert "no promise" in choice.reason
    waits["large"] = 0.9
    assert route.before(question_of(chat(CODE))).model == "large"
    waits.update(small=9.0, large=5.0)
    assert route.before(question_of(chat(CODE))).model == "large", "small is no faster"


def test_a_slow_large_model_does_not_save_a_broken_answer() -> None:
    route = Latency(quality(), 1.0, {"small": 0.2, "large": 5.0}.__getitem__)
    broken = verdict_of(Answered("{", (), "stop"), "the answer is not JSON")
    assert route.after(question_of(chat(PLAIN)), (broken,)).model == "large"
