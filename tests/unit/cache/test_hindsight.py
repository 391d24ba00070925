"""What is learnt of an answer after it was given: feedback, corrections, questions asked again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cache.hindsight import REMEMBERED
from engine.contract import Trail
from tests.support.house import AGAIN, FIRST, House
from tests.support.recordings import call_of


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    made.embedder.close()


# --------------------------------------------------------------------------- feedback


async def complaint(house: House, owner: str, number: int) -> str:
    """Of somebody who gets a hit, in words of their own."""
    house.owner, house.clock.now = owner, house.clock.now + 61
    _, trail = await house.ask(f"{AGAIN} {'so ' * number}", tenant=owner.partition("/")[0])
    assert trail.cache[0].hit
    return await house.tell(trail)


@pytest.mark.parametrize(
    ("first", "evil", "second"),
    [
        ("shop/good", ("shop/evil",), "shop/ann"),
        ("good", ("evil",), "ann"),
        ("good/a", ("evil/a", "evil/b", "evil/c"), "ann"),
        ("shop", ("shop/evil",), "shop"),
    ],
    ids=["users", "tenants of a group", "users of one tenant in a group", "nameless"],
)
async def test_a_shared_answer_goes_when_two_who_share_it_complain_and_each_counts_once(
    house: House, first: str, evil: tuple[str, ...], second: str
) -> None:
    house.owner = first
    await house.ask(FIRST, tenant=first.partition("/")[0])
    for owner in evil:
        heard = [await complaint(house, owner, number) for number in range(3)]
        assert heard == ["taught", "unchanged", "unchanged"]
    assert house.semantic.state()[0].entries == 1
    assert house.semantic.state()[0].labels_by_source == {"feedback": len(evil)}
    assert await complaint(house, second, 0) == "taught"
    assert house.semantic.state()[0].entries == 0


async def test_who_shares_an_answer_with_nobody_refuses_it_alone(house: House) -> None:
    await house.ask(FIRST)
    _, trail = await house.ask(AGAIN)
    assert await house.tell(trail) == "taught"
    assert house.semantic.state()[0].entries == 0
    assert house.semantic.state()[0].labels_by_source == {"feedback": 1}


async def test_praise_of_one_user_counts_once(house: House) -> None:
    await house.ask(FIRST)
    heard = []
    for _ in range(3):
        _, trail = await house.ask(AGAIN)
        heard.append(await house.tell(trail, 1))
    assert heard == ["taught", "unchanged", "unchanged"]
    [space] = house.semantic._spaces._spaces.values()
    assert next(iter(space._groups.values())).record.right == 1


async def test_a_correction_that_says_the_same_is_no_complaint(house: House) -> None:
    house.model.knows[FIRST] = "In the app."
    await house.ask(FIRST)
    for correct, labels in (("in the app", {}), ("only by post", {"feedback": 1})):
        _, trail = await house.ask(AGAIN)
        assert await house.tell(trail, 1, correct=correct) == "taught"
        assert house.semantic.state()[0].labels_by_source == labels
    answer, trail = await house.ask(AGAIN)
    assert (answer, trail.cache[0].hit) == ("In the app.", True)


async def test_a_complaint_about_an_answer_of_the_model_drops_it(house: House) -> None:
    _, trail = await house.ask(FIRST)
    assert await house.tell(trail) == "taught"
    assert house.semantic.state()[0].entries == 0
    assert not house.archive.questions


async def test_feedback_reaches_only_ones_own_hits_and_only_once(house: House) -> None:
    await house.ask(FIRST)
    _, trail = await house.ask(AGAIN)
    assert await house.tell(trail, tenant="other") == "unknown"
    assert await house.tell(trail, 1) == "taught"
    assert await house.tell(trail, 0) == "unchanged"
    assert house.semantic.state()[0].labels_by_source == {}
    assert await house.tell(Trail("unheard of")) == "unknown"


async def test_of_an_answer_that_is_no_longer_kept_there_is_nothing_to_learn(house: House) -> None:
    _, trail = await house.ask(FIRST)
    await house.semantic.purge()
    assert await house.tell(trail) == "unchanged"


async def test_feedback_from_another_scope_is_about_nothing(house: House) -> None:
    ann = call_of(FIRST, scope="user:shop/ann"), call_of(AGAIN, scope="user:shop/ann")
    _, fresh = await house.ask(ann[0], tenant="shop")
    _, hit = await house.ask(ann[1], tenant="shop")
    assert hit.cache[0].hit
    for answer in (fresh, hit):
        for scope in ("user:shop/bob", "tenant:shop", f"alone:{answer.id}"):
            assert await house.tell(answer, scope=scope) == "unknown"
    assert house.semantic.state()[0].labels_by_source == {}
    assert await house.tell(hit, scope="user:shop/ann") == "taught"
    assert house.semantic.state()[0].labels_by_source == {"feedback": 1}


# --------------------------------------------------------------------------- asking again


async def test_a_user_who_asks_again_in_other_words_is_answered_by_the_model(house: House) -> None:
    """And what the model says tells whether the hit had been wrong."""
    house.model.knows[FIRST] = "in the app"
    await house.ask(FIRST, tenant="shop")
    house.owner = "ann"
    _, hit = await house.ask(AGAIN, tenant="shop")
    house.model.knows[AGAIN + " today please"] = "only at the counter"
    house.terms = replace(house.terms, volatile=None)
    answer, again = await house.ask(AGAIN + " today please", tenant="shop")
    assert (hit.cache[0].hit, again.cache[0].hit, answer) == (True, False, "only at the counter")
    assert house.semantic.state()[0].labels_by_source["rephrase"] == 1


@pytest.mark.parametrize("case", ["late", "another user", "nobody in particular", "same answer"])
async def test_not_everything_asked_after_a_hit_is_a_complaint(house: House, case: str) -> None:
    house.terms = replace(house.terms, volatile=None)
    answer = "in the app" if case == "same answer" else "only at the counter"
    house.model.knows = {FIRST: "in the app", AGAIN + " today please": answer}
    await house.ask(FIRST, tenant="shop")
    house.owner = None if case == "nobody in particular" else "ann"
    await house.ask(AGAIN, tenant="shop")
    house.clock.now += 61 if case == "late" else 1
    house.owner = "bob" if case == "another user" else house.owner
    _, again = await house.ask(AGAIN + " today please", tenant="shop")
    assert again.cache[0].hit == (case != "same answer")
    assert "rephrase" not in house.semantic.state()[0].labels_by_source


# --------------------------------------------------------------------------- shares


async def test_a_tenants_flood_leaves_the_others_what_they_may_still_speak_of(house: House) -> None:
    await house.ask(FIRST, tenant="quiet")
    _, hit = await house.ask(AGAIN, tenant="quiet")
    hindsight = house.semantic._hindsight
    quiet = hindsight.find(hit.id)
    assert quiet is not None
    for number in range(2 * REMEMBERED):
        hindsight.remember(f"flood-{number}", replace(quiet, tenant="loud"))
    assert await house.tell(hit) == "taught"
    assert house.semantic.state()[0].labels_by_source == {"feedback": 1}
    assert hindsight.find("flood-0") is None


async def test_a_tenants_flood_leaves_the_others_their_hits_to_ask_again_after(
    house: House,
) -> None:
    house.model.knows[FIRST] = "in the app"
    await house.ask(FIRST, tenant="shop")
    house.owner = "ann"
    await house.ask(AGAIN, tenant="shop")
    hindsight = house.semantic._hindsight
    namespace = next(iter(house.semantic._spaces._spaces))
    _, hit = hindsight._hits.get((namespace, "ann")) or pytest.fail("no hit is remembered")
    for number in range(2 * REMEMBERED):
        hindsight.served(replace(hit, owner=f"loud/{number}"), "loud", house.clock())
    house.model.knows[AGAIN + " today please"] = "only at the counter"
    house.terms = replace(house.terms, volatile=None)
    await house.ask(AGAIN + " today please", tenant="shop")
    assert house.semantic.state()[0].labels_by_source["rephrase"] == 1
