"""What becomes of answers after their requests: so many at a time, and a failure stops no other."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import pytest

from cache.verify import Sighting, Verdict
from cache.verify_budget import Budgeted, Terms
from engine.contract import Failed, Finish, Trail
from tests.support.house import AGAIN, FIRST, House
from tests.support.recordings import call_of, hear

OTHER = "where do penguins sleep in winter"


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    made.embedder.close()


async def kept_of(house: House, *questions: str) -> list[str]:
    """What is kept of questions that are answered before any of them is compared."""
    await house.restore()
    answers = [house.semantic(call_of(text), Trail(text)) for text in questions]
    vectors = [await house.embedder.embed(text, "tenant:default") for text in questions]
    assert len(vectors) == len(questions)
    for answer in answers:
        await hear(answer)
    await house.semantic.settle()
    return [kept.question for kept in house.archive.questions.values()]


async def test_what_comes_beyond_the_bound_is_answered_and_not_learnt(house: House) -> None:
    house.semantic._labelling._most = 1
    assert await kept_of(house, FIRST, OTHER) == [FIRST]
    assert house.model.asked == [FIRST, OTHER]


async def test_a_comparison_that_fails_keeps_no_other_from_being_learnt(house: House) -> None:
    learn = house.semantic._labelling._teacher.learn

    async def fails_once(*arguments: object) -> object:
        house.semantic._labelling._teacher.learn = learn  # type: ignore[method-assign]
        raise ValueError("broken")

    house.semantic._labelling._teacher.learn = fails_once  # type: ignore[method-assign,assignment]
    assert await kept_of(house, FIRST, OTHER) == [OTHER]
    assert not house.semantic._spaces._coming


class Audits(Budgeted):
    """To which every near answer is a possible hit that happens to be audited."""

    def decide(self, sighting: Sighting, max_error: float | None = None) -> Verdict:
        return Verdict("explore", 0.9, 0.1, "audit")


@pytest.mark.parametrize("end", ["told", "hung up", "failed", "cut", "crowded out", "erased"])
async def test_an_audit_that_tells_nothing_counts_against_the_promise(end: str) -> None:
    policy = Audits(Terms(0.05), random.Random(1))
    house = House(policy=policy)
    house.model.knows = {FIRST: "in the app", AGAIN: "In the app."}
    await house.ask(FIRST)
    before = policy.ledger.at_most()
    answer = house.semantic(call_of(AGAIN), Trail("audit"))
    house.model.broken = end in {"failed", "cut"}
    if end == "crowded out":
        house.semantic._labelling._most = 0
    async with aclosing(answer):
        with suppress(Failed):
            async for event in answer:
                if end == "hung up":
                    break
                if end == "erased" and isinstance(event, Finish):
                    await house.semantic.purge()
    await house.semantic.settle()
    house.embedder.close()
    lost = end != "told"
    assert policy.ledger.audited == 1
    assert (policy.ledger.at_most() > before + 2) == lost
    assert house.semantic.state()[0].labels_by_source.get("lost", 0) == lost
    # The archive tells it to a later life, which fears as much.
    later = Audits(Terms(0.05), random.Random(1))
    again = House(policy=later, archive=house.archive)
    await again.restore()
    again.embedder.close()
    assert later.ledger.at_most() == policy.ledger.at_most()
