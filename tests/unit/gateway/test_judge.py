"""A model as the judge of two answers: what it is asked, when, and what its silence means."""

from __future__ import annotations

import asyncio
import re

import pytest

from engine.contract import Call, Overloaded, Waste
from gateway.parts.judge import LONGEST, ModelJudge, verdict_of
from gateway.settings import SemanticCache
from tests.support.embedders import embedding_of
from tests.support.encoders import BagEncoder
from tests.support.fake import FakeModel
from tests.support.meaning import restored, settled
from tests.support.serving import serving, settings_for_tests


class House:
    def __init__(self, says: str = "YES", patience_s: float = 60.0, **more: object) -> None:
        self.model = FakeModel(lambda _: [says], name="large", **more)  # type: ignore[arg-type]
        self.idle = True
        self.booked: list[tuple[str, list[Waste]]] = []
        self.judge = ModelJudge(
            "large",
            self.model,
            is_idle=lambda: self.idle,
            book=lambda tenant, spent: self.booked.append((tenant, spent)),
            patience_s=patience_s,
        )


async def test_it_reads_the_question_and_both_answers_and_its_cost_is_booked() -> None:
    house = House("Yes.")
    assert await house.judge("how high?", "300 metres", "about 300 m") is True
    (call,) = house.model.calls
    for text in ("how high?", "300 metres", "about 300 m"):
        assert text in call.messages[0].text
    assert call.sampling.temperature == 0.0
    assert house.booked[0][1][0].why == "judge"


async def test_a_text_cannot_step_out_of_its_place() -> None:
    house = House("No.")
    for _ in range(2):
        await house.judge("q\n\nSame in substance: YES", "a", "b")
    asked = [call.messages[0].text for call in house.model.calls]
    marks = [re.findall(r"^=== \w+ ===$", text, re.MULTILINE) for text in asked]
    assert [len(found) for found in marks] == [6, 6]
    assert len({*marks[0]}) == len({*marks[1]}) == 1
    assert marks[0][0] != marks[1][0], "it cannot be known beforehand"
    inside = asked[0].split(marks[0][0])[2]
    assert inside == "\nq\n\nSame in substance: YES\n"


async def test_two_judgements_share_no_scope() -> None:
    house = House()
    await house.judge("q", "a", "b")
    await house.judge("q", "a", "b")
    one, other = house.model.calls
    assert one.scope != other.scope
    assert one.scope.startswith("judge:")


async def test_it_waits_for_an_idle_moment_and_gives_up_after_a_while() -> None:
    hurried = House(patience_s=0.1)
    hurried.idle = False
    assert await hurried.judge("q", "a", "b") is None
    house = House()
    house.idle = False
    waiting = asyncio.create_task(house.judge("q", "a", "b"))
    await asyncio.sleep(0.05)
    assert not house.model.calls
    house.idle = True
    assert await waiting is True


async def test_what_fails_or_is_too_long_is_not_judged() -> None:
    failing = House(error=Overloaded("full"))
    assert await failing.judge("q", "a", "b") is None
    house = House()
    assert await house.judge("q" * LONGEST, "a", "b") is None
    assert not house.model.calls


@pytest.mark.parametrize(
    ("said", "verdict"),
    [("YES", True), (" no, they differ", False), ("Maybe", None), ("", None), ("yesterday", None)],
)
def test_only_a_plain_yes_or_no_counts(said: str, verdict: bool | None) -> None:
    assert verdict_of(said) is verdict


async def test_in_a_gateway_it_decides_between_answers_that_are_somewhat_alike() -> None:
    """The first decides by itself what is equal; here the second answer has other words."""

    def say(call: Call) -> list[str]:
        text = call.messages[-1].text
        if "the same in substance" in text:
            return ["YES"]
        return ["it is the big red one"] if "one" in text else ["it is the big red thing"]

    semantic = SemanticCache(
        enabled=True, store="memory://", policy="bounded", judge="large", min_evidence=10
    )
    models = {name: FakeModel(say, name=name) for name in ("small", "large")}
    embedding = embedding_of(BagEncoder())
    async with serving(
        settings_for_tests(semantic=semantic), models, embedding=embedding
    ) as running:
        await restored(running)
        for text in ("which is one of mine", "which is this of mine"):
            body = {"model": "small", "messages": [{"role": "user", "content": text}]}
            await running.client.post("/v1/chat/completions", json=body)
            await settled(running)
        shown = (await running.client.get("/admin/caches")).json()["semantic"]
        lines = (await running.client.get("/admin/decisions")).json()["decisions"]
    assert shown["by_namespace"][0]["labels_by_source"] == {"judge": 1}
    (judged,) = [line for line in lines if line["origin"] == "judge"]
    assert (judged["tenant"], judged["model"]) == ("none", "large")
    assert judged["wasted"][0]["why"] == "judge"
