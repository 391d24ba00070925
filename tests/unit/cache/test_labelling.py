"""What becomes of answers after their requests: so many at a time, and a failure stops no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.contract import Trail
from tests.support.house import FIRST, House
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
