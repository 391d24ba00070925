"""An erasure is complete under every policy: nothing that somebody asked or was told is left.

ann asks first and bob's question means the same, but the model words its answer to him in another
way. Policies differ in what they keep of that: another question for the answer, or its wording
alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from cache.agree import text_of
from cache.archive import Erasure
from cache.entry import Origin
from cache.namespace import Terms
from cache.quota import Bounds
from cache.replay import decode
from cache.semantic import budgeted
from cache.verify import Policy
from cache.verify_others import Pooled, Static, VCache
from engine.contract import Trail
from tests.support.house import AGAIN, FIRST, House
from tests.support.recordings import call_of, hear

POLICIES: dict[str, Callable[[], Policy]] = {
    "bounded": lambda: budgeted(Terms(max_error=0.05)),
    "vcache": lambda: VCache(0.05, random.Random(1)),
    "static": lambda: Static(2.0),
    "pooled": lambda: Pooled(0.05, random.Random(1)),
}
TO_ANN, TO_BOB = "In the app.", "in the app"
BOBS = "user:shop/bob"


class Scene(House):
    """Two users of one tenant, whom the gateway names in tags and as owners."""

    async def ask_as(self, user: str, question: str) -> Trail:
        self.owner = user
        _, trail = await self.ask(question, tenant="shop", tags=(f"user:shop/{user}", "both"))
        return trail

    @property
    def texts(self) -> set[str]:
        """All that is held anywhere of questions and answers."""
        spaces = self.semantic._spaces._spaces.values()
        groups = [group for space in spaces for group in space._groups.values()]
        entries = [entry for space in spaces for entry in space._entries.values()]
        archived = list(self.archive.questions.values())
        last_hits = self.semantic._hindsight._hits._held.values()
        recordings = [decode(one.recording) for one in archived]
        return {
            *(text_of(group.recording) for group in groups),
            *(text_of(one) for one in recordings if one is not None),
            *(entry.question for entry in entries),
            *(one.question for one in archived),
            *(text for _, text in self.embedder._memo),
            *(asked.question for hits in last_hits for _, asked in hits.values()),
        }


@pytest.fixture(params=POLICIES)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = Scene(policy=POLICIES[request.param](), bounds=Bounds(max_per_owner=1))
    made.model.knows = {FIRST: TO_ANN, AGAIN: TO_BOB}
    yield made
    made.embedder.close()


@pytest.mark.parametrize("by", ["owner", "tag", "answer"])
async def test_what_a_user_asked_and_was_told_is_gone(scene: Scene, by: str) -> None:
    await scene.ask_as("ann", FIRST)
    told = await scene.ask_as("bob", AGAIN)
    assert TO_BOB in scene.texts
    assert await scene.semantic.purge(**{by: {"owner": "bob", "tag": BOBS, "answer": told.id}[by]})
    assert not {AGAIN, TO_BOB} & scene.texts
    again = Scene(archive=scene.archive, clock=scene.clock, policy=Static(0.8))
    await again.restore()
    assert not {AGAIN, TO_BOB} & again.texts
    again.embedder.close()


@pytest.mark.parametrize("by", ["owner", "tag"])
async def test_a_wording_is_erased_whose_question_was_pushed_out(scene: Scene, by: str) -> None:
    await scene.ask_as("ann", FIRST)
    await scene.ask_as("bob", AGAIN)
    await scene.ask_as("bob", "where do penguins sleep when it snows")
    assert TO_BOB in scene.texts
    await scene.semantic.purge(**{by: {"owner": "bob", "tag": BOBS}[by]})
    assert not {AGAIN, TO_BOB, "about snows"} & scene.texts


async def test_what_is_still_compared_when_it_is_erased_is_not_kept(scene: Scene) -> None:
    await scene.ask_as("ann", FIRST)
    scene.owner = "bob"
    trail = Trail("late", tenant="shop", tags=(BOBS,))
    await hear(scene.semantic(call_of(AGAIN), trail))
    await scene.semantic.purge(tag=BOBS)
    await scene.semantic.settle()
    assert TO_BOB not in scene.texts
    assert TO_ANN in scene.texts


async def test_what_all_gateways_were_told_to_erase_is_erased_while_it_is_compared(
    scene: Scene,
) -> None:
    await scene.ask_as("ann", FIRST)
    scene.owner = "bob"
    await hear(scene.semantic(call_of(AGAIN), Trail("late", tenant="shop", tags=(BOBS,))))
    await scene.semantic._spaces.hear(Erasure(tag=BOBS))
    await scene.semantic.settle()
    assert TO_BOB not in scene.texts


async def test_what_is_still_compared_when_its_namespace_is_forgotten_is_not_kept() -> None:
    house = House(policy=Static(2.0))
    house.model.knows = {
        FIRST: "pay it in the app or by post",
        AGAIN: "pay it in the app or by phone please",
    }

    async def forgetful(_question: str, _fresh: str, _cached: str) -> bool:
        house.semantic._spaces.open(
            Origin(b"another", "tenant:other", "small"), house.terms, "other"
        )
        return True

    house.semantic._spaces._max_spaces = 1
    house.semantic._labelling._teacher._judge = forgetful
    await house.ask(FIRST)
    await house.ask(AGAIN)
    house.embedder.close()
    assert [kept.question for kept in house.archive.questions.values()] == [FIRST]


async def test_the_others_keep_theirs(scene: Scene) -> None:
    await scene.ask_as("ann", FIRST)
    await scene.ask_as("bob", "where do penguins sleep when it snows")
    await scene.semantic.purge(owner="bob")
    assert {FIRST, TO_ANN} <= scene.texts
