"""Shadow runs: who is sampled, when they run, and what is kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from cascade.labels import read_labels
from cascade.shadow import Grades, Sampling, Shadow, agreement
from engine.contract import (
    Call,
    Message,
    Part,
    Start,
    ToolCall,
    Trail,
    UpstreamFailed,
    Waste,
)
from tests.support.fake import FakeModel
from tests.support.routing import chat
from tests.support.speakers import eventually


class Scene:
    """A shadow around a fake cascade; `settle` lets its task run for a moment."""

    def __init__(self, share: float = 1.0, **given: Any) -> None:
        self.rows: list[str] = []
        self.booked: list[Waste] = []
        self.idle = True
        self.front = given.pop("front", FakeModel(name="front"))
        self.small = given.pop("small", FakeModel(lambda _: ["Paris"], name="small"))
        self.large = given.pop("large", FakeModel(lambda _: ["paris."], name="large"))
        self.shadow = Shadow(
            self.front,
            {"s": self.small, "l": self.large},
            sampling=Sampling(lambda _: share, **given.pop("sampling", {})),
            rng=random.Random(0),
            grade=given.pop("grade", agreement),
            is_idle=lambda: self.idle,
            keep=lambda tenant, row: self.rows.append(row),
            book=lambda tenant, spent: self.booked.extend(spent),
        )

    async def ask(self, call: Call, trail: Trail | None = None) -> None:
        async for _ in self.shadow(call, trail or Trail("r")):
            pass

    async def settle(self, until: Callable[[], bool] = lambda: False) -> None:
        task = asyncio.create_task(self.shadow.run())
        for _ in range(200):
            await asyncio.sleep(0)
            if until():
                break
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_both_models_answer_and_the_row_is_a_label() -> None:
    scene = Scene()
    await scene.ask(chat("Capital of France?"))
    await scene.settle()
    (row,) = read_labels(scene.rows)
    assert (row.small, row.large) == (1.0, 1.0)
    assert row.call.messages == chat("Capital of France?").messages
    assert row.answer is not None
    assert row.answer.text == "Paris"
    assert row.answer.logprobs == (-0.5,)
    assert row.tokens == 1
    assert (scene.small.calls[0].model, scene.large.calls[0].model) == ("s", "l")
    assert not scene.large.calls[0].logprobs, "only small is judged"
    assert [(one.model, one.usage.completion_tokens) for one in scene.booked] == [
        ("s", 1),
        ("l", 1),
    ]
    assert (row.weight, row.volunteered) == (1.0, False)
    assert scene.small.trails[0].share < 1.0, "real requests go first"


async def test_nothing_runs_while_the_engine_is_busy() -> None:
    scene = Scene()
    scene.idle = False
    await scene.ask(chat("Hi"))
    await scene.settle()
    assert not scene.small.calls
    scene.idle = True
    await scene.settle(lambda: bool(scene.rows))
    assert len(scene.rows) == 1


async def test_only_a_share_is_sampled() -> None:
    scene = Scene(share=0.2)
    for number in range(300):
        await scene.ask(chat(f"Question {number}"))
    await scene.settle(lambda: False)
    await scene.settle(lambda: False)
    assert 30 <= len(scene.rows) + len(scene.shadow._waiting) <= 90


async def test_what_is_decided_is_explored_seldom_and_weighs_the_more() -> None:
    scene = Scene(0.5, sampling={"undecided": lambda call: "?" in call.messages[0].text})
    for number in range(400):
        await scene.ask(chat(f"{number}?" if number % 2 else f"{number}."))
    for _ in range(8):
        await scene.settle()
    rows = read_labels(scene.rows)
    asked = {True: [], False: []}
    for row in rows:
        asked["?" in row.call.messages[0].text].append(row.weight)
    assert set(asked[True]) == {2.0}
    assert set(asked[False]) == {20.0}
    assert 70 <= len(asked[True]) <= 130
    assert 2 <= len(asked[False]) <= 22
    assert sum(row.weight for row in rows) == pytest.approx(400, rel=0.4)


async def test_the_oldest_gives_way() -> None:
    scene = Scene(sampling={"waiting": 2})
    for text in ("a?", "b?", "c?"):
        await scene.ask(chat(text))
    await scene.settle()
    assert [row.call.messages[0].text for row in read_labels(scene.rows)] == ["b?", "c?"]


async def test_images_tool_calls_and_several_answers_are_not_kept() -> None:
    scene = Scene()
    image = Message("user", (Part("image_url", "{}"),))
    called = Message("assistant", (), tool_calls=(ToolCall("1", "f", "{}"),))
    for call in (
        chat("a", n=2),
        replace(chat("a"), messages=(image,)),
        replace(chat("a"), messages=(called, *chat("a").messages)),
        replace(chat("a"), model="small"),
        Call("text", "auto", "t", prompt=(1, 2)),
    ):
        await scene.ask(call)
    await scene.settle()
    assert scene.rows == []


@pytest.mark.parametrize(
    ("score", "truth", "small", "large"),
    [
        (1.0, "", 0.0, 1.0),
        (0.0, "", 0.0, 0.0),
        (0.0, "Rome", 0.0, 1.0),
        (0.0, "paris", 1.0, 0.0),
    ],
)
async def test_feedback_makes_a_row_that_is_volunteered(
    score: float, truth: str, small: float, large: float
) -> None:
    """The large model said Rome, and is told what that was worth."""
    rome = FakeModel(lambda _: ["Rome"], name="l")
    scene = Scene(share=1e-9, front=rome, large=rome)
    await scene.ask(chat("Capital?"), Trail("abc", tenant="t"))
    assert not scene.shadow.feedback("abc", score, tenant="other", scope="t")
    assert not scene.shadow.feedback("abc", score, tenant="t", scope="user:t/other")
    assert not scene.shadow.feedback("abd", score, tenant="t", scope="t")
    assert scene.shadow.feedback("abc", score, tenant="t", scope="t", correct_answer=truth)
    await scene.settle(lambda: bool(scene.rows))
    (row,) = read_labels(scene.rows)
    assert (row.small, row.large, row.volunteered) == (small, large, True)


async def test_feedback_that_is_given_again_counts_once_and_the_last_word_holds() -> None:
    rome = FakeModel(lambda _: ["Rome"], name="l")
    scene = Scene(share=1e-9, front=rome, large=rome)
    await scene.ask(chat("Capital?"), Trail("abc", tenant="t"))
    for score in (1.0, 0.0, 1.0):
        assert scene.shadow.feedback("abc", score, tenant="t", scope="t")
    assert scene.shadow.waiting == 1, "what has not been looked at yet is replaced"
    await scene.settle(lambda: bool(scene.rows))
    assert scene.shadow.feedback("abc", 0.0, tenant="t", scope="t")
    await scene.settle(lambda: len(scene.rows) == 2)
    (row,) = read_labels(scene.rows)
    assert row.large == 0.0


async def test_what_is_erased_waits_no_more_is_not_written_and_has_no_feedback() -> None:
    slow = FakeModel(lambda _: ["Paris"], name="large", pause_s=0.02)
    scene = Scene(large=slow)
    for who in ("ann", "bob", "ann"):
        await scene.ask(chat(f"I am {who}"), Trail(who, tenant="t", tags=(f"user:{who}",)))
    task = asyncio.create_task(scene.shadow.run())
    await eventually(lambda: bool(slow.calls))
    scene.shadow.erase(lambda scope, labels: scope == "t" and "user:ann" in labels)
    assert scene.shadow.waiting == 1
    assert not scene.shadow.feedback("ann", 1.0, tenant="t", scope="t")
    assert scene.shadow.feedback("bob", 1.0, tenant="t", scope="t")
    await eventually(lambda: len(scene.rows) == 2)
    task.cancel()
    assert all("I am bob" in row for row in scene.rows)
    assert scene.shadow.dropped == 1


async def test_an_answer_that_was_cut_is_no_sample() -> None:
    scene = Scene()
    answer = scene.shadow(chat("Hi"), Trail("r"))
    assert isinstance(await anext(answer), Start)
    await answer.aclose()
    await scene.settle()
    assert scene.front.closed_early == 1
    assert not scene.small.calls


async def test_a_model_that_fails_costs_one_row_and_not_the_task() -> None:
    scene = Scene(small=FakeModel(error=UpstreamFailed("gone")))
    await scene.ask(chat("one"))
    await scene.ask(chat("two"))
    await scene.settle()
    assert scene.rows == []
    assert len(scene.small.calls) == 2


async def test_what_nobody_can_grade_is_dropped() -> None:
    async def unsure(call: Call, small: str, large: str) -> Grades | None:
        return None

    scene = Scene(grade=unsure)
    await scene.ask(chat("Hi"))
    await scene.settle()
    assert scene.rows == []


async def test_a_text_prompt_and_a_format_survive_the_file() -> None:
    scene = Scene()
    await scene.ask(Call("text", "auto", "t", prompt="Once"))
    await scene.settle()
    assert read_labels(scene.rows)[0].call.prompt == "Once"


@pytest.mark.parametrize(
    ("small", "large", "same"),
    [("Paris", "paris.", 1.0), ("4\n", " 4", 1.0), ("Rome", "Paris", 0.0), ("-4", "4", 0.0)],
)
async def test_agreement_is_about_the_words(small: str, large: str, same: float) -> None:
    assert await agreement(chat("?"), small, large) == Grades(same, 1.0)
