from __future__ import annotations

import asyncio

import pytest

from engine.contract import (
    Answer,
    CacheStatus,
    Call,
    Decision,
    Delta,
    End,
    Failed,
    Finish,
    Overloaded,
    Start,
    Trail,
    Usage,
)
from gateway.api.fanout import answer_all
from tests.support.fake import FakeModel

TWO = [Call(kind="text", model="m", scope="s", prompt=prompt, n=2) for prompt in ("a", "b")]


def texts(events: list[object]) -> dict[int, str]:
    found: dict[int, str] = {}
    for event in events:
        if isinstance(event, Delta):
            found[event.index] = found.get(event.index, "") + event.payload
    return found


async def test_choices_are_numbered_in_the_order_of_the_prompts() -> None:
    events: list[object] = [e async for e in answer_all(FakeModel(), TWO, Trail("1"))]
    assert texts(events) == {
        0: "You said: a ", 1: "You said: a ", 2: "You said: b ", 3: "You said: b ",
    }  # fmt: skip
    assert sum(isinstance(event, Start) for event in events) == 1
    assert {event.index for event in events if isinstance(event, Finish)} == {0, 1, 2, 3}
    assert events[-1] == End(Usage(14, 12, 4, 22))


async def test_one_call_is_passed_on_as_it_is() -> None:
    model = FakeModel()
    trail = Trail("1")
    assert [event async for event in answer_all(model, TWO[:1], trail)]
    assert model.trails[0] is trail


async def test_a_failure_of_one_ends_them_all() -> None:
    async def second_fails(call: Call, trail: Trail) -> Answer:
        if call.prompt == "b":
            raise Overloaded("full")
        async for event in slow(call, trail):
            yield event

    slow = FakeModel(pause_s=30.0)
    with pytest.raises(Overloaded):
        _ = [event async for event in answer_all(second_fails, TWO, Trail("1"))]
    assert slow.closed_early == 1


async def test_closing_closes_each_of_them() -> None:
    slow = FakeModel(pause_s=30.0)
    answer = answer_all(slow, TWO, Trail("1"))
    assert isinstance(await anext(answer), Start)
    await asyncio.sleep(0)
    await answer.aclose()
    assert slow.closed_early == 2


async def test_an_answer_that_was_cut_fails_the_whole() -> None:
    with pytest.raises(Failed, match="cut"):
        _ = [event async for event in answer_all(FakeModel(end=False), TWO, Trail("1"))]


async def test_what_happened_to_each_is_told_together() -> None:
    async def explaining(call: Call, trail: Trail) -> Answer:
        trail.decisions.append(Decision("layer", str(call.prompt), "because"))
        trail.stage("queue", 0.0, (5.0 if call.prompt == "b" else 1.0) / 1e3)
        async for event in FakeModel()(call, trail):
            yield event

    trail = Trail("1")
    assert [event async for event in answer_all(explaining, TWO, trail)]
    assert sorted(decision.choice for decision in trail.decisions) == ["a", "b"]
    assert trail.spans_ms["queue"] == 5.0


async def test_the_head_tells_of_all_calls_before_anything_is_said() -> None:
    async def cached_or_not(call: Call, trail: Trail) -> Answer:
        hit = call.prompt == "a"
        await asyncio.sleep(0 if hit else 0.01)
        trail.cache.append(CacheStatus("exact", hit=hit, forward="" if hit else "miss"))
        trail.age_s = 7.0 if hit else None
        async for event in FakeModel(name="exact" if hit else "large")(call, trail):
            yield event

    trail = Trail("1")
    answer = answer_all(cached_or_not, TWO, trail)
    start = await anext(answer)
    assert isinstance(start, Start)
    assert start.origin == "large"
    assert [(one.hit, one.detail) for one in trail.cache] == [
        (True, "1 of 2 prompts"), (False, "1 of 2 prompts"),
    ]  # fmt: skip
    assert trail.age_s == 7.0
    events: list[object] = [event async for event in answer]
    assert len(texts(events)) == 4
