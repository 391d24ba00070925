"""Try, judge, commit or escalate: the flow, with two fake models."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cascade.ability import Abilities, lacking
from cascade.cascade import ABANDONED, Cascade, Team
from cascade.gain import GainModel
from cascade.hold import Hold
from cascade.judge import AFTER
from cascade.price import Price
from cascade.promise import Cut, Promise
from cascade.routes.base import Choice, Question
from cascade.routes.cautious import Cautious
from cascade.routes.fixed import fixed
from cascade.routes.latency import Latency
from cascade.routes.learned import Quality, Scorer, Whole
from engine.contract import (
    CUT,
    BadCall,
    Call,
    DeadlineExceeded,
    Delta,
    Draft,
    End,
    Event,
    Finish,
    Json,
    Message,
    Overloaded,
    Part,
    Start,
    ToolCall,
    Trail,
    UnknownModel,
    UpstreamFailed,
    Usage,
)
from tests.support.fake import FakeModel
from tests.support.routing import CODE_GAINS, UNSURE_GAINS, chat, gain_of

SURE = Cautious(least_mean=-0.6, least=-0.6, must_end=False, hold_tokens=3)
"""The fake model's log-probabilities are −0.5 each: sure enough for this one."""
STRICT = Cautious(must_end=False, hold_tokens=3)


def say(text: str) -> Any:
    return lambda call: [f"{word} " for word in text.split()]


class Pair:
    """Two fake models and the cascade over them."""

    def __init__(self, route: Any = SURE, **given: Any) -> None:
        self.small = given.pop("small", FakeModel(say("one two three four five"), name="small"))
        self.large = given.pop("large", FakeModel(say("a better answer"), name="large"))
        prices = {"small": Price(10, 40), "large": Price(100, 400)}
        team = Team("small", "large", prices=prices, **given)
        models = {"small": self.small, "large": self.large}
        self.cascade = Cascade(models, route, team)
        self.trail = Trail("r1")

    async def ask(self, call: Call | None = None, *, whole: bool = False) -> list[Event]:
        self.trail = Trail("r1", whole=whole)
        answer = self.cascade(call or chat("Count to five."), self.trail)
        return [event async for event in answer]

    @property
    def reasons(self) -> list[str]:
        return [f"{d.choice}: {d.reason}" for d in self.trail.decisions]


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.payload for event in events if isinstance(event, Delta))


def starts(events: Sequence[Event]) -> list[str]:
    return [event.origin for event in events if isinstance(event, Start)]


# ------------------------------------------------------------------ commit and escalate


async def test_a_good_answer_is_committed_whole_and_large_is_never_asked() -> None:
    pair = Pair()
    events = await pair.ask()
    assert text_of(events) == "one two three four five "
    assert starts(events) == ["small"]
    assert isinstance(events[-1], End)
    assert not pair.large.calls
    assert "kept" in pair.reasons[-1]


async def test_log_probabilities_that_only_the_judge_asked_for_do_not_leave() -> None:
    pair = Pair()
    events = await pair.ask()
    assert pair.small.calls[0].logprobs
    assert not any(event.logprobs for event in events if isinstance(event, Delta))
    events = await pair.ask(chat("Count to five.", logprobs=True, top_logprobs=1))
    assert all(event.logprobs for event in events if isinstance(event, Delta))


async def test_a_doubtful_answer_is_escalated_and_its_text_is_a_draft() -> None:
    pair = Pair(STRICT)
    events = await pair.ask()
    assert text_of(events) == "a better answer "
    assert starts(events) == ["large"]
    assert pair.trail.drafts == [Draft("one two three ", "small")]
    assert pair.small.closed_early == 1, "small stops as soon as it is judged"
    assert [d.choice for d in pair.trail.decisions] == ["small", "large"]


async def test_the_abandoned_attempt_is_counted_as_computed() -> None:
    alone, pair = Pair(fixed("large")), Pair(STRICT)
    plain, escalated = (await alone.ask())[-1], (await pair.ask())[-1]
    assert isinstance(plain, End)
    assert isinstance(escalated, End)
    extra = escalated.usage.computed_tokens - plain.usage.computed_tokens
    assert extra == 5 + 3
    [thrown] = pair.trail.wasted
    assert (thrown.model, thrown.usage, thrown.why) == ("small", Usage(7, 3, 2, 8), ABANDONED)
    assert not alone.trail.wasted


@pytest.mark.parametrize("large", [FakeModel(error=Overloaded("full")), FakeModel(name="large")])
async def test_the_abandoned_attempt_is_waste_where_large_fails_or_the_caller_goes(
    large: FakeModel,
) -> None:
    pair = Pair(STRICT, large=large)
    answer = pair.cascade(chat("Count to five."), pair.trail)
    with contextlib.suppress(Overloaded):
        await anext(answer)
    await answer.aclose()
    abandoned, *cut = pair.trail.wasted
    assert (abandoned.model, abandoned.usage) == ("small", Usage(7, 3, 2, 8))
    assert [(w.model, w.usage) for w in cut] == [("large", Usage(7, 0, 2, 5))] * large.closed_early


async def test_an_answer_that_ended_while_it_was_held_and_is_then_cut_is_waste() -> None:
    pair = Pair(Cautious(least_mean=-9.0, least=-9.0, hold_tokens=99))
    answer = pair.cascade(chat("Count to five."), pair.trail)
    await anext(answer)
    await answer.aclose()
    assert not pair.small.closed_early
    [cut] = pair.trail.wasted
    assert (cut.model, cut.usage.prompt_tokens, cut.why) == ("small", 7, CUT)
    assert cut.usage.completion_tokens > 0


async def test_what_small_had_said_at_the_deadline_is_waste() -> None:
    pair = Pair(STRICT, small=FakeModel(say("one two"), late_error=DeadlineExceeded("late")))
    with pytest.raises(DeadlineExceeded):
        await pair.ask()
    assert len(pair.trail.wasted) == 1


async def test_nothing_leaves_before_the_verdict_and_nothing_changes_after_it() -> None:
    """Small's later tokens are bad, but its stream has begun."""
    seen: list[int] = []

    class Watching(Cautious):
        def after(self, question: Question, verdicts: Any) -> Choice:
            seen.append(len(delivered))
            return super().after(question, verdicts)

    delivered: list[Event] = []
    small = FakeModel(say("one two three 2 + 2 = 5 however sorry"), name="small")
    pair = Pair(Watching(least_mean=-0.6, least=-0.6, must_end=False, hold_tokens=3), small=small)
    async for event in pair.cascade(chat("Count."), pair.trail):
        delivered.append(event)  # noqa: PERF401 - the route looks at it meanwhile
    assert seen == [0]
    assert text_of(delivered) == "one two three 2 + 2 = 5 however sorry "
    assert not pair.large.calls


async def test_every_choice_is_judged() -> None:
    pair = Pair(SURE)
    events = await pair.ask(chat("Count to five.", n=2))
    assert [event.index for event in events if isinstance(event, Finish)] == [0, 1]
    assert not pair.large.calls


async def test_a_document_is_held_whole_and_a_broken_one_escalated() -> None:
    asked = chat("As JSON.", response_format=Json('{"type":"json_object"}'))
    large = FakeModel(lambda _: ['{"a": 1}'], name="large")
    pair = Pair(SURE, small=FakeModel(say('{"a": 1, "b" 7}'), name="small"), large=large)
    assert text_of(await pair.ask(asked)) == '{"a": 1}'
    assert "not JSON" in pair.reasons[-1]
    pair = Pair(SURE, small=FakeModel(say('{"a": 1}'), name="small"), large=large)
    assert starts(await pair.ask(asked)) == ["small"]


# ------------------------------------------------------------------ answers that nobody reads along

WRONG = FakeModel(say("well now then 2 + 2 = 5"), name="small")
WRONG_SUMS = gain_of("any_sum_wrong", AFTER, "after")
"""Large is better where a sum is wrong; in the first three words of WRONG there is none."""
BOLD = Cut(0.0, True, 500, 0.05, 0.0, 0.4)


def patient(tokens: int = 512, early: float = 0.1, judge: GainModel = WRONG_SUMS) -> Quality:
    scorer = Scorer(CODE_GAINS, judge, hold_tokens=3)
    return Quality(scorer, Promise(0.01), BOLD, Whole(tokens, 0.15, early, BOLD))


async def test_a_whole_answer_is_judged_whole_and_a_streamed_one_by_its_first_tokens() -> None:
    pair = Pair(patient(), small=WRONG)
    assert starts(await pair.ask()) == ["small"]
    assert "first tokens" in pair.reasons[-1]
    assert starts(await pair.ask(whole=True)) == ["large"]
    assert "whole answer" in pair.reasons[-1]
    assert len(pair.reasons) == 2, "one before, one after"


async def test_a_whole_answer_that_is_good_goes_out_as_it_came() -> None:
    pair = Pair(patient())
    assert await pair.ask(whole=True) == await pair.ask()
    assert not pair.large.calls


async def test_a_rejected_whole_answer_is_all_waste() -> None:
    pair = Pair(patient(), small=WRONG)
    events = await pair.ask(whole=True)
    assert [(w.model, w.usage) for w in pair.trail.wasted] == [("small", Usage(7, 8, 2, 13))]
    assert isinstance(events[-1], End)
    assert events[-1].usage.computed_tokens == 5 + 3 + 13
    assert pair.trail.drafts == [Draft("well now then 2 + 2 = 5 ", "small")]


async def test_a_hopeless_answer_is_not_waited_for() -> None:
    small = FakeModel(say("2 + 3 = 7 and so on and on"), name="small")
    pair = Pair(replace(patient(), scorer=replace(patient().scorer, hold_tokens=5)), small=small)
    assert starts(await pair.ask(whole=True)) == ["large"]
    assert pair.trail.wasted[0].usage.completion_tokens == 5
    unsure = replace(patient(early=10.0).scorer, hold_tokens=5)
    pair = Pair(replace(patient(early=10.0), scorer=unsure), small=small)
    assert starts(await pair.ask(whole=True)) == ["large"]
    assert pair.trail.wasted[0].usage.completion_tokens == 10, "waited for: not hopeless enough"


async def test_an_answer_that_runs_on_for_too_long_is_escalated() -> None:
    pair = Pair(patient(tokens=4))
    assert starts(await pair.ask(whole=True)) == ["large"]
    assert "longer than 4 tokens" in pair.reasons[-1]
    assert pair.trail.wasted[0].usage.completion_tokens == 4


async def test_every_choice_is_waited_for_and_judged() -> None:
    pair = Pair(patient())
    events = await pair.ask(chat("Count to five.", n=2), whole=True)
    assert [event.index for event in events if isinstance(event, Finish)] == [0, 1]
    pair = Pair(patient(), small=WRONG)
    assert starts(await pair.ask(chat("Count to five.", n=2), whole=True)) == ["large"]


async def test_an_answer_cut_by_its_own_limit_has_ended() -> None:
    class Cut(FakeModel):
        def _middle(self, call: Call, pieces: Sequence[str]) -> list[Event]:
            return [*super()._middle(call, pieces)[:-1], Finish(0, "length")]

    pair = Pair(patient(judge=UNSURE_GAINS), small=Cut(say("one two three four"), name="small"))
    assert starts(await pair.ask()) == ["small"]
    assert starts(await pair.ask(whole=True)) == ["large"], "the judge has learnt that it is bad"


async def test_a_policy_of_speed_waits_for_no_end() -> None:
    pair = Pair(Latency(patient(), 1.0, lambda _: 0.0), small=WRONG)
    assert starts(await pair.ask(whole=True)) == ["small"]


async def test_small_failing_while_it_is_waited_for_is_nobodys_problem() -> None:
    small = FakeModel(say("one two three four"), name="small", late_error=UpstreamFailed("cut"))
    assert starts(await Pair(patient(), small=small).ask(whole=True)) == ["large"]


async def test_the_uncalibrated_wait_for_a_long_answer_that_nobody_reads_along() -> None:
    sure = Cautious(least_mean=-0.6, least=-0.6, hold_tokens=3)
    assert starts(await Pair(sure).ask()) == ["large"]
    assert starts(await Pair(sure).ask(whole=True)) == ["small"]
    assert starts(await Pair(sure, small=WRONG).ask(whole=True)) == ["large"]


# ------------------------------------------------------------------ failure


@pytest.mark.parametrize("error", [UpstreamFailed("gone"), Overloaded("full"), BadCall("too long")])
async def test_where_small_cannot_answer_large_does(error: Exception) -> None:
    pair = Pair(small=FakeModel(error=error))
    assert starts(await pair.ask()) == ["large"]
    assert str(error) in pair.reasons[-1]


async def test_small_breaking_while_it_is_held_back_is_nobodys_problem() -> None:
    small = FakeModel(say("one two"), late_error=UpstreamFailed("cut"))
    pair = Pair(small=small)
    assert starts(await pair.ask()) == ["large"]


async def test_an_answer_that_ends_without_end_while_held_is_not_good_enough() -> None:
    pair = Pair(small=FakeModel(say("one two"), end=False))
    assert starts(await pair.ask()) == ["large"]
    assert "broke off" in pair.reasons[-1]


async def test_small_breaking_after_the_commit_is_an_error() -> None:
    pair = Pair(small=FakeModel(say("one two three four"), late_error=UpstreamFailed("cut")))
    with pytest.raises(UpstreamFailed):
        await pair.ask()
    assert not pair.large.calls


async def test_the_deadline_is_not_passed_on_to_another_model() -> None:
    pair = Pair(small=FakeModel(error=DeadlineExceeded("late")))
    with pytest.raises(DeadlineExceeded):
        await pair.ask()
    assert not pair.large.calls


async def test_large_failing_is_an_error() -> None:
    pair = Pair(STRICT, large=FakeModel(error=Overloaded("full")))
    with pytest.raises(Overloaded):
        await pair.ask()


@pytest.mark.parametrize("route", [SURE, STRICT, fixed("large")])
async def test_a_hang_up_reaches_whoever_answers(route: Any) -> None:
    pair = Pair(route)
    answer = pair.cascade(chat("Count."), pair.trail)
    await anext(answer)
    await answer.aclose()
    asked = [model for model in (pair.small, pair.large) if model.calls]
    assert all(model.closed_early == 1 for model in asked)


# ------------------------------------------------------------------ who is asked at all


async def test_a_named_model_is_asked_as_it_is() -> None:
    pair = Pair()
    assert starts(await pair.ask(chat("Hi", model="large"))) == ["large"]
    assert not pair.trail.decisions
    with pytest.raises(UnknownModel, match="small, large"):
        await pair.ask(chat("Hi", model="huge"))


async def test_without_a_team_the_route_is_fixed() -> None:
    large = FakeModel(name="large")
    trail = Trail("r")
    answer = Cascade({"large": large}, fixed("large"))(chat("Hi"), trail)
    assert starts([event async for event in answer]) == ["large"]
    assert trail.decisions[0].reason == "policy fixed: always large"


@pytest.mark.parametrize(
    ("fields", "abilities", "lack"),
    [
        ({"tools": Json("[]")}, Abilities(tools=False), "tools"),
        (
            {"response_format": Json('{"type":"json_schema"}')},
            Abilities(json=False),
            "response_format",
        ),
        ({"max_tokens": 100}, Abilities(context_tokens=50), "context"),
        ({"logprobs": True}, Abilities(logprobs=False), "log-prob"),
        ({"extra": Json("{}")}, Abilities(), "parameters"),
        ({}, Abilities(), ""),
    ],
)
def test_a_lack_is_named(fields: dict[str, Any], abilities: Abilities, lack: str) -> None:
    found = lacking(chat("Hi", **fields), abilities)
    assert found.startswith(lack) or lack in found
    assert bool(found) == bool(lack)


async def test_who_cannot_do_it_is_not_asked() -> None:
    picture = Message("user", (Part("image_url", '{"url":"x"}'),))
    call = chat(messages=(picture,), kind="chat")
    pair = Pair(abilities={"large": Abilities(vision=True)})
    assert starts(await pair.ask(call)) == ["large"]
    assert "small cannot take images" in pair.reasons[0]
    with pytest.raises(BadCall, match="No model of `auto`"):
        await Pair().ask(call)


async def test_where_large_cannot_small_answers_unjudged() -> None:
    pair = Pair(STRICT, abilities={"large": Abilities(context_tokens=5)})
    assert starts(await pair.ask()) == ["small"]


async def test_the_calls_policy_picks_its_route() -> None:
    models = {"small": FakeModel(name="small"), "large": FakeModel(name="large")}
    cascade = Cascade(
        models, fixed("large"), Team("small", "large"), routes={"cheap": fixed("small")}
    )
    for policy, model in (("cheap", "small"), ("", "large"), ("unknown", "large")):
        answer = cascade(chat("Hi", policy=policy), Trail("r"))
        assert starts([event async for event in answer]) == [model]


# ------------------------------------------------------------------ conversations


def cut_at(threshold: float) -> Quality:
    return Quality(Scorer(CODE_GAINS), Promise(0.01), Cut(threshold, True, 500, 0.05, 0.0, 0.4))


async def test_a_conversation_with_large_stays_there_unless_the_gain_is_clearly_gone() -> None:
    pair = Pair(cut_at(-0.47))
    first = chat("Mend ```this```")
    assert starts(await pair.ask(first)) == ["large"]
    then = chat("Mend ```this```", "Mended.", "Thanks! And what does it do?")
    assert starts(await pair.ask(then)) == ["large"]
    assert "stays" in pair.reasons[-1]
    other = chat("Another talk", "Yes?", "Thanks! And what does it do?")
    assert starts(await pair.ask(other)) == ["small"]


async def test_tool_results_go_back_to_the_model_that_called() -> None:
    pair = Pair(cut_at(0.0))
    question = Message("user", (Part("text", "Weather?"),))
    assert starts(await pair.ask(chat(messages=(question,)))) == ["small"]
    called = Message("assistant", (), None, (ToolCall("t1", "f", "{}"),))
    result = Message("tool", (Part("text", "```rain```"),), tool_call_id="t1")
    turn = (question, called, result)
    assert starts(await pair.ask(chat(messages=turn))) == ["small"]
    assert "stays with the model" in pair.reasons[-1]
    stranger = (Message("user", (Part("text", "Other?"),)), called, result)
    assert starts(await pair.ask(chat(messages=stranger))) == ["large"]


async def test_what_the_prefix_tree_holds_makes_large_the_cheaper_one() -> None:
    def held(model: str, call: Call) -> int:
        return 10_000 if model == "large" else 0

    pair = Pair(cut_at(0.0), held=held)
    call = chat("word " * 8000, max_tokens=1)
    assert starts(await pair.ask(call)) == ["large"]
    assert "costs no more" in pair.reasons[-1]


# ------------------------------------------------------------------ embedding, spans


async def test_the_embedding_comes_from_whoever_was_given() -> None:
    asked: list[Call] = []

    async def embed(call: Call) -> np.ndarray | None:
        asked.append(call)
        return None

    block = replace(CODE_GAINS.blocks[0], name="embedding")
    model = replace(CODE_GAINS, blocks=(block,))
    route = Quality(Scorer(model), Promise(0.01), Cut(9.0, True, 500, 0.0, 0.0, 0.0))
    pair = Pair(route, embed=embed)
    assert starts(await pair.ask()) == ["large"]
    assert len(asked) == 1
    assert {"route"} <= pair.trail.spans_ms.keys()


async def test_the_judges_time_is_booked() -> None:
    pair = Pair()
    await pair.ask()
    assert {"route", "judge"} <= pair.trail.spans_ms.keys()


# ------------------------------------------------------------------ holding back


def test_a_choice_that_ended_early_does_not_keep_the_others_waiting() -> None:
    hold = Hold(2, 2)
    hold.add(Delta(0, "text", "a", (1,)))
    hold.add(Finish(0, "stop"))
    assert not hold.is_full
    hold.add(Delta(1, "text", "b", (1, 2)))
    assert hold.is_full
    assert hold.tokens == 3


def test_an_answer_shorter_than_the_hold_waits_for_its_end() -> None:
    hold = Hold(1, 16)
    hold.add(Delta(0, "text", "a", (1,)))
    hold.add(Finish(0, "stop"))
    assert not hold.is_full


def test_tool_arguments_are_put_together() -> None:
    hold = Hold(1, None)
    for part in (
        {"index": 0, "function": {"name": "f"}},
        {"index": 0, "function": {"arguments": "{"}},
    ):
        hold.add(Delta(0, "tool", json.dumps(part)))
    (answer,) = hold.answers()
    assert answer.tool_arguments == ("{",)
