"""The semantic layer: what is served, what is kept apart, what is learnt, what is said of it."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from cache.agree import agree, at_a_glance
from cache.archive import Kept, MemoryArchive
from cache.embed import Vector
from cache.namespace import Terms, namespace_of, why_not
from cache.quota import Bounds
from cache.rest import AWAKE, CLOSED_FOR
from cache.semantic import budgeted
from cache.space import SPACE_BYTES
from cache.verify import Neighbour, Policy, Record, Verdict, sight
from cache.verify_budget import Budgeted
from cache.verify_facts import FEATURES
from cache.verify_others import Static, VCache
from engine.contract import (
    Call,
    Directives,
    End,
    Failed,
    Json,
    Message,
    Part,
    Sampling,
    Start,
    Trail,
)
from tests.support.encoders import bag_vector
from tests.support.house import AGAIN, FIRST, House
from tests.support.recordings import call_of, hear


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    made.embedder.close()


# --------------------------------------------------------------------------- serving


async def test_a_near_question_gets_the_kept_answer(house: House) -> None:
    answer, _ = await house.ask(FIRST)
    hit, trail = await house.ask(AGAIN)
    assert hit == answer
    assert house.model.asked == [FIRST]
    assert [(s.layer, s.hit) for s in trail.cache] == [("semantic", True)]


async def test_a_hit_says_where_it_came_from_and_what_it_cost(house: House) -> None:
    await house.ask(FIRST)
    house.clock.now += 30
    trail = Trail(id="mine")
    events = await hear(house.semantic(call_of(AGAIN), trail))
    start, end = events[0], events[-1]
    assert isinstance(start, Start)
    assert isinstance(end, End)
    assert (start.id, start.origin) == ("mine", "semantic")
    assert end.usage.computed_tokens == 0
    assert trail.age_s == 30
    assert trail.cache[0].ttl_s == 970


async def test_another_question_goes_to_the_model(house: House) -> None:
    await house.ask(FIRST)
    answer, trail = await house.ask("where do penguins sleep in winter")
    assert answer == "about winter"
    assert not trail.cache[0].hit


async def test_a_near_miss_is_handed_on_as_a_draft(house: House) -> None:
    await house.ask("please tell me how to pay bill 7")
    _, trail = await house.ask("please tell me how to pay bill 8")
    assert [draft.text for draft in trail.drafts] == ["about 7"]


async def test_off_means_that_nothing_is_looked_at(house: House) -> None:
    house.terms = Terms(max_error=0)
    _, trail = await house.ask(FIRST)
    assert trail.cache == []
    assert house.encoder.encoded == []


# --------------------------------------------------------------------------- apart


@pytest.mark.parametrize(
    "change",
    [
        {"scope": "tenant:other"},
        {"scope": "tenant:default:user:2"},
        {"model": "large"},
        {"fingerprint": "weights-2"},
        {"policy": "strict"},
        {"max_tokens": 5},
        {"stop": ("x",)},
        {"sampling": Sampling(seed=3)},
        {"response_format": Json('{"type":"json_object"}')},
        {"chat_template_kwargs": Json('{"thinking":true}')},
        {"logprobs": True},
        {"extra": Json('{"new":1}')},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_what_differs_elsewhere_never_hits(house: House, change: dict[str, object]) -> None:
    await house.ask(call_of(FIRST))
    _, trail = await house.ask(call_of(FIRST, **change))
    assert not trail.cache[0].hit
    assert len(house.model.asked) == 2


async def test_another_system_prompt_never_hits(house: House) -> None:
    def with_system(text: str) -> Call:
        system = Message("system", (Part("text", text),))
        return call_of(messages=(system, Message("user", (Part("text", FIRST),))))

    await house.ask(with_system("Answer in French."))
    _, trail = await house.ask(with_system("Answer in German."))
    assert not trail.cache[0].hit


def test_only_the_last_text_is_outside_the_namespace() -> None:
    assert namespace_of(call_of("a")) == namespace_of(call_of("b"))
    assert namespace_of(call_of("a"), "one embedder") != namespace_of(call_of("a"), "another")
    assert namespace_of(call_of("a", scope="x")) != namespace_of(call_of("a", scope="y"))


def test_a_text_cannot_pose_as_a_part_of_the_namespace() -> None:
    blank = call_of("")
    posing = call_of("x", messages=(Message("user", (Part("text", "x"),)), *blank.messages))
    assert namespace_of(posing) != namespace_of(blank)


# --------------------------------------------------------------------------- not cached


def user(text: str) -> Message:
    return Message("user", (Part("text", text),))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (call_of("hello", tools=Json("[]")), "tools"),
        (call_of(messages=(Message("tool", (Part("text", "1"),)), user("so?"))), "tools"),
        (call_of(messages=(user("a"), Message("assistant"), user("b"))), "several turns"),
        (call_of(messages=(Message("assistant"),)), "not a text question"),
        (call_of(messages=(Message("user", (Part("image_url", "{}"),)),)), "not a text question"),
        (call_of("  "), "not a text question"),
        (call_of("hello", n=2), "randomness"),
        (call_of("hello", sampling=Sampling(temperature=0.7)), "randomness"),
        (call_of("what is the weather in Oslo"), "volatile"),
        (call_of(kind="text", messages=(), prompt=(1, 2)), "not a text question"),
        (call_of(kind="text", messages=(), prompt="once upon"), None),
        (call_of("hello", sampling=Sampling(temperature=0)), None),
    ],
)
def test_what_cannot_be_cached_by_meaning_is_named(call: Call, reason: str | None) -> None:
    assert why_not(call, Terms(max_error=0.01)) == reason


def test_policy_allows_turns_and_randomness_by_name() -> None:
    turns = call_of(messages=(user("a"), Message("assistant"), user("b")))
    random = call_of("hello", sampling=Sampling(temperature=0.7))
    assert why_not(turns, Terms(max_error=0.01, allow_turns=True)) is None
    assert why_not(random, Terms(max_error=0.01, allow_sampling=True)) is None
    assert why_not(call_of("beta?"), Terms(0.01, volatile=re.compile("beta"))) == "volatile"


async def test_a_bypass_says_why(house: House) -> None:
    _, trail = await house.ask("what is the weather like")
    assert (trail.cache[0].forward, trail.cache[0].detail) == ("bypass", "volatile")


async def test_a_text_over_the_window_is_bypassed_and_never_cut(house: House) -> None:
    house.encoder.window = 5
    for _ in range(2):
        _, trail = await house.ask(FIRST)
        assert trail.cache[0].forward == "bypass"
        assert "window" in trail.cache[0].detail
    assert len(house.model.asked) == 2


# --------------------------------------------------------------------------- Cache-Control


async def test_no_store_neither_reads_nor_writes(house: House) -> None:
    await house.ask(FIRST)
    _, read = await house.ask(FIRST, directives=Directives(no_store=True))
    await house.ask("a new thing entirely", directives=Directives(no_store=True))
    _, written = await house.ask("a new thing entirely")
    assert read.cache[0].forward == "request"
    assert not written.cache[0].hit


async def test_a_question_asked_afresh_again_and_again_breaks_nothing(house: House) -> None:
    """As a probe of health does; more often than the index's cell has room."""
    await house.ask("where do penguins sleep in winter")
    for _ in range(400):
        await house.ask(FIRST, directives=Directives(no_cache=True))
    for question in (AGAIN, "where do penguins sleep in winter"):
        _, trail = await house.ask(question)
        assert trail.cache[0].hit


async def test_no_cache_writes_and_does_not_read(house: House) -> None:
    house.model.knows[FIRST] = "old"
    await house.ask(FIRST)
    house.model.knows[AGAIN] = "old"
    _, trail = await house.ask(AGAIN, directives=Directives(no_cache=True))
    assert trail.cache[0].forward == "request"
    assert house.model.asked == [FIRST, AGAIN]
    house.clock.now += 10
    _, later = await house.ask(AGAIN)
    assert later.age_s == 10


async def test_max_age_refuses_older_answers(house: House) -> None:
    await house.ask(FIRST)
    house.clock.now += 100
    _, strict = await house.ask(FIRST, directives=Directives(max_age_s=50))
    assert not strict.cache[0].hit


# --------------------------------------------------------------------------- fresh and whole


async def test_an_answer_ends_with_its_ttl(house: House) -> None:
    await house.ask(FIRST)
    house.clock.now += 1001
    _, trail = await house.ask(FIRST)
    assert not trail.cache[0].hit
    assert house.semantic.state()[0].entries == 1


async def test_who_takes_no_old_answers_gets_none_and_others_still_do(house: House) -> None:
    await house.ask(FIRST)
    house.clock.now += 10
    given = house.terms
    house.terms = replace(given, ttl_s=10.0)
    _, trail = await house.ask(FIRST)
    assert not trail.cache[0].hit
    house.terms = replace(given, ttl_s=15.0)
    house.clock.now += 1
    _, trail = await house.ask(AGAIN)
    assert (trail.cache[0].hit, trail.cache[0].ttl_s) == (True, 4.0)


async def test_who_stops_listening_at_the_end_has_heard_all_of_it(house: House) -> None:
    await house.restore()
    async with aclosing(house.semantic(call_of(FIRST), Trail(id="r0"))) as answer:
        async for event in answer:
            if isinstance(event, End):
                break
    await house.semantic.settle()
    _, trail = await house.ask(AGAIN)
    assert trail.cache[0].hit


async def test_a_cut_answer_is_not_kept(house: House) -> None:
    house.model.broken = True
    with pytest.raises(Failed):
        await house.ask(FIRST)
    house.model.broken = False
    _, trail = await house.ask(FIRST)
    assert not trail.cache[0].hit


async def test_a_hit_is_not_kept_as_another_answer(house: House) -> None:
    await house.ask(FIRST)
    await house.ask(AGAIN)
    assert house.semantic.state()[0].entries == 1


async def test_a_changed_answer_to_the_same_words_replaces_the_old_one(house: House) -> None:
    house.model.knows[FIRST] = "at the counter"
    await house.ask(FIRST)
    house.model.knows[FIRST] = "only in the app"
    await house.ask(FIRST, directives=Directives(no_cache=True))
    answer, _ = await house.ask(FIRST)
    assert answer == "only in the app"
    assert house.semantic.state()[0].entries == 1


# --------------------------------------------------------------------------- learning


async def test_the_models_answer_labels_its_neighbour(house: House) -> None:
    house.policy = Static(2.0)
    house.model.knows = {FIRST: "In the app.", AGAIN: "in the app", FIRST + " now": "by post"}
    house.terms = replace(house.terms, volatile=None)
    for question in house.model.knows:
        await house.ask(question)
    state = house.semantic.state()[0]
    assert state.labels_by_source == {"equal": 1, "meaning": 1}
    assert (state.entries, state.answers) == (3, 2)


async def test_under_a_promise_hits_come_with_evidence() -> None:
    """A thousand wordings of forty questions: the promised policy learns to serve them."""
    house = House(policy=budgeted(Terms(max_error=0.05)))
    served = wrong = 0
    for number in range(1000):
        topic = f"subject{number * 7 % 40} matter{number * 7 % 40}"
        question = f"word{number % 23} explain {topic} extra{number % 17}"
        house.model.knows[question] = f"all about {topic}"
        answer, trail = await house.ask(question)
        hit = trail.cache[0].hit
        served += hit
        wrong += hit and answer != f"all about {topic}"
    promise = house.semantic.state()[0].promise
    house.embedder.close()
    assert promise is not None
    assert promise.served == served > 100
    assert wrong <= 50


# --------------------------------------------------------------------------- purge and bounds


async def test_purge_drops_by_tag_scope_and_owner(house: House) -> None:
    await house.ask("first thing of all", tags=("a",), tenant="ann")
    await house.ask("second matter quite different", tags=("b",), tenant="bob")
    await house.ask(call_of("third", scope="tenant:other"), tenant="cyd")
    assert await house.semantic.purge(tag="nothing") == 0
    assert await house.semantic.purge(tag="a") == 1
    assert await house.semantic.purge(owner="bob") == 1
    assert await house.semantic.purge(scope="tenant:other") == 1
    assert sum(state.entries for state in house.semantic.state()) == 0


async def test_one_owner_cannot_fill_the_cache() -> None:
    house = House(bounds=Bounds(max_per_owner=3))
    await house.ask("what the others asked before", tenant="ann")
    for word in ("apple", "banana", "cherry", "damson", "elder"):
        await house.ask(f"{word} {word}ish {word}like", tenant="mallory")
    assert house.semantic.state()[0].entries == 4
    _, trail = await house.ask("what the others asked before", tenant="bob")
    house.embedder.close()
    assert trail.cache[0].hit


async def test_a_scope_drops_its_oldest_beyond_its_bound() -> None:
    house = House(bounds=Bounds(max_entries=2))
    for word in ("apple", "banana", "cherry"):
        await house.ask(f"{word} {word}ish {word}like")
    _, trail = await house.ask("apple appleish applelike")
    house.embedder.close()
    assert not trail.cache[0].hit


async def test_who_floods_many_namespaces_pushes_out_only_themselves() -> None:
    house = House(bounds=Bounds(max_per_owner=3, max_entries=6))
    await house.ask("what the others asked before", tenant="ann")
    for number in range(20):
        call = call_of(f"apple number {number}", max_tokens=number + 1)
        await house.ask(call, tenant="mallory")
    assert sum(state.entries for state in house.semantic.state()) == 4
    assert len(house.archive.questions) == 4
    _, trail = await house.ask("what the others asked before", tenant="bob")
    house.embedder.close()
    assert trail.cache[0].hit


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("scope", ["tenant:loud", "user:loud/evil{}", "group:club"])
async def test_too_many_namespaces_cost_the_tenant_that_has_most_of_them(
    scope: str, restarted: bool
) -> None:
    """Whatever scopes it makes, and users."""
    house = House()
    house.semantic._spaces._max_spaces = 7
    quiet = [("quiet", "tenant:quiet", 1), ("quiet", "tenant:quiet", 2), ("club", "group:club", 1)]
    for tenant, shared, limit in quiet:
        await house.ask(call_of(FIRST, scope=shared, max_tokens=limit), tenant=tenant)
    for number in range(20):
        house.owner = f"loud/evil{number}"
        call = call_of("flood", scope=scope.format(number), max_tokens=number + 10)
        await house.ask(call, tenant="loud")
    if restarted:
        house.embedder.close()
        house = House(archive=house.archive)
        house.semantic._spaces._max_spaces = 7
        await house.restore()
    house.owner = None
    assert len(house.semantic.state()) == 7
    for tenant, shared, limit in quiet:
        call = call_of(AGAIN, scope=shared, max_tokens=limit)
        _, trail = await house.ask(call, tenant=tenant)
        assert trail.cache[0].hit
    house.embedder.close()


async def test_within_a_tenant_a_users_namespaces_push_out_only_their_own() -> None:
    """What others use as well is no longer theirs to lose."""
    house = House(bounds=Bounds(max_namespaces=6))
    for owner, limit in (("shop/good", 1), ("shop/evil", 2), ("shop/good", 2)):
        house.owner = owner
        await house.ask(call_of(f"{FIRST} {limit}", max_tokens=limit), tenant="shop")
    house.owner = "shop/evil"
    for number in range(20):
        await house.ask(call_of("flood", max_tokens=number + 10), tenant="shop")
    house.owner, house.clock.now = "shop/good", house.clock.now + 100
    for limit in (1, 2):
        call = call_of(f"{AGAIN} {limit}", max_tokens=limit)
        _, trail = await house.ask(call, tenant="shop")
        assert trail.cache[0].hit
    house.embedder.close()
    assert len(house.semantic.state()) == 6


async def test_users_of_one_tenant_have_each_their_namespaces_and_share_its_questions() -> None:
    house = House(bounds=Bounds(max_entries=8, max_namespaces=2))
    for number in range(10):
        house.owner = f"shop/user{number}"
        await house.ask(call_of(FIRST, scope=f"user:{house.owner}"), tenant="shop")
    house.embedder.close()
    assert len(house.semantic.state()) == 10
    assert [state.entries for state in house.semantic.state()] == [1] * 8 + [0] * 2
    assert len(house.semantic._spaces._quotas) == 1


def held_bytes(house: House) -> int:
    held = house.semantic._spaces._memory.held_bytes
    assert held == sum(state.held_bytes for state in house.semantic.state())
    return held


async def test_long_answers_of_one_tenant_push_out_only_their_own() -> None:
    """From memory and from the archive."""
    house = House(memory_bytes=300_000)
    await house.ask(FIRST, tenant="quiet")
    for number in range(30):
        question = f"apple{number} banana{number} cherry{number}"
        house.model.knows[question] = str(number) + "x" * 40_000
        await house.ask(question, tenant="loud")
        assert held_bytes(house) <= 300_000
    _, trail = await house.ask(AGAIN, tenant="quiet")
    house.embedder.close()
    assert trail.cache[0].hit
    kept = [one.question.split()[0] for one in house.archive.questions.values()]
    assert kept == ["please", *(f"apple{number}" for number in range(31 - len(kept), 30))]
    assert 4 <= len(kept) < 8


async def test_what_a_hit_is_rendered_into_counts_and_so_do_tags() -> None:
    house = House()
    await house.ask(FIRST, tags=("x" * 100,))
    before = held_bytes(house)
    _, trail = await house.ask(AGAIN, tags=("y" * 100,))
    assert trail.cache[0].hit
    [space] = house.semantic._spaces._spaces.values()
    [group] = space._groups.values()
    group.recording.memo["sse"] = b"x" * 5000
    assert held_bytes(house) == before + 5000
    await house.semantic.purge()
    house.embedder.close()
    assert held_bytes(house) == SPACE_BYTES


async def test_what_is_used_stays_longest_where_memory_is_short() -> None:
    house = House(memory_bytes=SPACE_BYTES + 3 * 16_000)
    questions = [f"apple{n} banana{n} cherry{n}" for n in range(4)]
    house.model.knows = {text: f"{text} " * 650 for text in questions}
    for number in (0, 1, 2, 0, 3):
        await house.ask(questions[number])
    house.embedder.close()
    kept = {one.question for one in house.archive.questions.values()}
    assert questions[1] not in kept
    assert kept >= {questions[0], questions[3]}


async def test_namespaces_that_have_learnt_give_way_where_memory_is_short() -> None:
    """The tenant's who has most of them, with all that was asked there."""
    house = House(memory_bytes=4 * SPACE_BYTES + 20_000)
    await house.ask(call_of(FIRST, scope="tenant:quiet"), tenant="quiet")
    for number in range(9):
        await house.ask(call_of("flood", max_tokens=number + 1), tenant="loud")
        assert held_bytes(house) <= 4 * SPACE_BYTES + 20_000
    _, trail = await house.ask(call_of(AGAIN, scope="tenant:quiet"), tenant="quiet")
    house.embedder.close()
    assert trail.cache[0].hit
    assert 3 <= len(house.semantic.state()) <= 4


async def test_a_scope_forgets_its_longest_unused_namespace_beyond_its_bound() -> None:
    house = House(bounds=Bounds(max_namespaces=2))
    for scope, limit in (("a", 1), ("a", 2), ("b", 1), ("a", 1), ("a", 3)):
        await house.ask(call_of(FIRST, scope=scope, max_tokens=limit))
    hits = []
    for scope, limit in (("b", 1), ("a", 3), ("a", 1), ("a", 2)):
        _, trail = await house.ask(call_of(AGAIN, scope=scope, max_tokens=limit))
        hits.append(trail.cache[0].hit)
    house.embedder.close()
    assert hits == [True, True, True, False]


async def test_vcache_forgets_what_it_learnt_of_questions_that_are_gone() -> None:
    policy = VCache(0.05, random.Random(1))
    house = House(policy=policy, bounds=Bounds(max_entries=2))
    for word in ("apple", "banana", "cherry"):
        for _ in range(2):
            await house.ask(f"{word} {word}ish {word}like")
    assert 0 < len(policy._pairs) <= 2
    await house.semantic.purge()
    house.embedder.close()
    assert not policy._pairs


async def test_an_answer_can_be_purged_by_its_id(house: House) -> None:
    await house.ask(FIRST)
    _, hit = await house.ask(AGAIN)
    assert await house.semantic.purge(answer="unheard of") == 0
    assert await house.semantic.purge(answer=hit.id, scope="tenant:other") == 0
    assert await house.semantic.purge(answer=hit.id) == 1
    assert not house.archive.questions


async def test_an_answer_goes_with_any_of_its_questions(house: House) -> None:
    house.policy = Static(2.0)
    house.model.knows = {FIRST: "In the app.", AGAIN: "in the app"}
    await house.ask(FIRST, tenant="ann")
    await house.ask(AGAIN, tenant="bob")
    assert await house.semantic.purge(owner="bob") == 2


async def test_out_of_touch_with_the_others_nothing_is_served(house: House) -> None:
    await house.ask(FIRST)
    house.archive.in_touch = False
    _, trail = await house.ask(AGAIN)
    assert (trail.cache[0].forward, house.model.asked) == ("bypass", [FIRST, AGAIN])
    house.archive.in_touch = True
    _, trail = await house.ask(AGAIN)
    assert trail.cache[0].hit


# --------------------------------------------------------------------------- across restarts


def reopened(house: House, policy: Policy) -> House:
    return House(model=house.model, archive=house.archive, clock=house.clock, policy=policy)


async def test_questions_and_answers_survive_a_restart(house: House) -> None:
    answer, _ = await house.ask(FIRST)
    await house.ask("where do penguins sleep in winter")
    again = reopened(house, Static(0.8))
    assert await again.restore() == 2
    hit, trail = await again.ask(AGAIN)
    again.embedder.close()
    assert (hit, trail.cache[0].hit) == (answer, True)


async def test_what_was_purged_stays_away_after_a_restart(house: House) -> None:
    await house.ask(FIRST, tags=("a",))
    await house.semantic.purge(tag="a")
    again = reopened(house, Static(0.8))
    assert await again.restore() == 0
    again.embedder.close()


async def test_what_was_learnt_survives_a_restart() -> None:
    house = House(policy=budgeted(Terms(max_error=0.05)))
    for number in range(231):
        await house.ask(f"word{number} subject{number % 9} matter{number % 9}")
    policy = budgeted(Terms(max_error=0.05))
    again = reopened(house, policy)
    await again.restore()
    house.embedder.close()
    again.embedder.close()
    assert isinstance(house.policy, Budgeted)
    assert policy.labels == house.policy.labels == 230
    assert policy.state().requests == house.policy.state().requests == 231
    assert policy.odds.weights.any()


async def test_a_failing_archive_is_reported_and_fails_nobody() -> None:
    class Full(MemoryArchive):
        async def keep(self, kept: Kept) -> None:
            raise OSError("disk full")

    house = House(archive=Full())
    await house.ask(FIRST)
    _, trail = await house.ask(AGAIN)
    house.embedder.close()
    assert trail.cache[0].hit
    assert house.faults == ["keep: disk full"]


def test_a_snapshot_of_another_version_changes_nothing() -> None:
    policy = budgeted(Terms(max_error=0.05))
    assert not policy.restore(b"rubbish")
    assert policy.state().requests == 0


# --------------------------------------------------------------------------- resting


async def test_where_nothing_is_ever_allowed_most_requests_are_left_alone() -> None:
    house = House(policy=Static(2.0))
    space_requests = 0
    await house.ask(FIRST)
    space = next(iter(house.semantic._spaces._spaces.values()))
    for _ in range(CLOSED_FOR):
        space.rest.note(allowed=False)
    for _ in range(2 * AWAKE):
        _, trail = await house.ask(FIRST)
        space_requests += trail.cache[0].forward == "miss"
    house.embedder.close()
    assert space_requests == 2
    assert "resting" in trail.cache[0].detail or trail.cache[0].forward == "miss"


async def test_a_new_promise_wakes_a_namespace_that_rests(house: House) -> None:
    await house.ask(FIRST)
    space = next(iter(house.semantic._spaces._spaces.values()))
    for _ in range(CLOSED_FOR):
        space.rest.note(allowed=False)
    assert space.rest.passes()
    house.terms = Terms(max_error=0.2, ttl_s=1000)
    _, trail = await house.ask(AGAIN)
    assert trail.cache[0].hit


def test_a_new_namespace_begins_with_what_its_siblings_learnt() -> None:
    wise = budgeted(Terms(max_error=0.05))
    fresh = budgeted(Terms(max_error=0.05), [wise])
    assert (fresh.odds.prior == budgeted(Terms(max_error=0.05)).odds.prior).all()
    sighting = sight([Neighbour(1, 1, 0.9)], (0.0,) * len(FEATURES), Record())
    for _ in range(500):
        wise.learn(sighting, Verdict("forward", 0.5, 1.0, ""), right=True)
    wise.odds.weights = wise.odds.weights + 2
    assert (budgeted(Terms(max_error=0.05), [wise]).odds.prior > fresh.odds.prior).all()


# --------------------------------------------------------------------------- do answers agree


async def embed(text: str) -> Vector:
    return bag_vector(text)


class TestAgree:
    @pytest.mark.parametrize(
        ("fresh", "cached"),
        [("Yes.", "yes"), ('{"a": 1, "b": 2}', '{"b":2,"a":1}'), ("It  is so!", "it is so")],
    )
    async def test_wording_alone_does_not_part_answers(self, fresh: str, cached: str) -> None:
        assert (await agree("q", fresh, cached, embed=embed)).right

    @pytest.mark.parametrize(
        ("fresh", "cached"),
        [("It costs 7 euros", "It costs 8 euros"), ("it is safe", "it is not safe"), ("1", "true")],
    )
    async def test_other_facts_do(self, fresh: str, cached: str) -> None:
        label = await agree("q", fresh, cached, embed=embed)
        assert (label.right, label.source) == (False, "facts")

    @pytest.mark.parametrize(
        ("fresh", "cached"),
        [
            ("184467440737095516161", "184467440737095516162"),
            ('{"id": 0.12345678901234567891}', '{"id": 0.12345678901234567892}'),
            ("[1]", "[true]"),
        ],
    )
    def test_numbers_of_many_digits_are_not_taken_for_their_neighbours(
        self, fresh: str, cached: str
    ) -> None:
        label = at_a_glance(fresh, cached)
        assert label is None or not label.right

    @pytest.mark.parametrize(
        ("fresh", "cached"),
        [
            ("Take .5 mg", "Take 5 mg"),
            ("It draws 5 mW.", "It draws 5 MW."),
            ("from 1..5", "from 1.5"),
            ("It costs 1,000", "It costs 1.000"),
            ("The result is 5!", "The result is 5"),
            ("(2 + 3) * 4", "2 + (3 * 4)"),
            ("return !done;", "return done;"),
            ("!a && b", "a && b"),
            ("a != b", "a = b"),
            ("rm -rf ./tmp", "rm -rf /tmp"),
            ("Run rm -rf .cache now", "Run rm -rf cache now"),
            ("```py\nif a:\n  b()\n  c()\n```", "```py\nif a:\n  b()\nc()\n```"),
        ],
    )
    async def test_what_means_what_it_says_to_the_letter_is_never_taken_for_its_neighbour(
        self, fresh: str, cached: str
    ) -> None:
        async def alike(_: str) -> Vector:
            return np.eye(8, dtype=np.float32)[0]

        for pair in ((fresh, cached), (cached, fresh)):
            label = await agree("q", *pair, embed=alike)
            assert not label.right, label
        same = await agree("q", fresh, fresh + " \n", embed=alike)
        assert (same.right, same.source) == (True, "equal")

    @pytest.mark.parametrize(
        ("fresh", "cached"),
        [
            ("You can pay by card, or in cash.", "you can pay by card or in cash"),
            ("The answer is 12.", "The answer is 12"),
            ("R&D and AT&T work together", "R&D and AT&T work together!"),
        ],
    )
    def test_prose_that_differs_in_case_and_punctuation_is_equal(
        self, fresh: str, cached: str
    ) -> None:
        label = at_a_glance(fresh, cached)
        assert label is not None
        assert (label.right, label.source) == (True, "equal")

    async def test_code_is_for_a_judge_to_compare(self) -> None:
        async def yes(question: str, fresh: str, cached: str) -> bool:
            return True

        pair = ("Use `a.sort()` for it.", "For it use `a.sort()`.")
        label = await agree("q", *pair, embed=embed, judge=yes)
        assert (label.right, label.source) == (True, "judge")

    def test_json_of_any_depth_can_be_compared(self) -> None:
        for depth in (300, 1000, 100_000):
            deep = "[" * depth + "{}" + "]" * depth
            label = at_a_glance(deep, deep.replace("{}", "5"))
            assert label is None or not label.right

    async def test_meaning_parts_what_is_far_and_joins_nothing(self) -> None:
        text = "you can pay the bill in the app or at any counter of ours in town"
        near = await agree("q", text, text + " today", embed=embed)
        far = await agree("q", text, "penguins sleep standing", embed=embed)
        assert (near.right, near.source) == (False, "unclear")
        assert (far.right, far.source) == (False, "meaning")

    @pytest.mark.parametrize(
        ("fresh", "cached"),
        [
            ("It meets on Monday.", "It meets on Friday."),
            ("Maria Chen teaches it.", "Laura Chen teaches it."),
            (
                "HISTORY 203 has to come before EECS 445.",
                "EECS 445 has to come before HISTORY 203.",
            ),
            ("There are 22 labs and 15 lectures.", "There are 15 labs and 22 lectures."),
            ("The limit is 25 days.", "The limit is 25 weeks."),
            ("The lab is easier.", "The lab is harder."),
            ("You pay the fee.", "We pay the fee."),
            ("Choose STATS 203, MATH 203 or ART 37.", "Choose STATS 203 or MATH 37."),
            ("Take vitamin A.", "Take vitamin."),
            ("Of course not.", "Not."),
            ("Sure-fire ways exist.", "fire ways exist."),
            ("5\n- x", "5\nx"),
            ("Hello! Ask Weber.", "Hello! Ask Novak."),
        ],
    )
    async def test_one_word_parts_answers_that_an_embedder_takes_for_the_same(
        self, fresh: str, cached: str
    ) -> None:
        async def alike(_: str) -> Vector:
            return np.eye(8, dtype=np.float32)[0]

        for pair in ((fresh, cached), (cached, fresh)):
            assert not (await agree("q", *pair, embed=alike)).right

    def test_yes_and_no_differ_however_often_they_negate(self) -> None:
        label = at_a_glance("Sure! Yes, auditors can take it.", "**No**, auditors cannot take it.")
        assert label is not None
        assert (label.right, label.source) == (False, "facts")

    @pytest.mark.parametrize(
        "fresh",
        [
            "Sure! It meets on Monday.",
            "**Answer:** It meets on **Monday**",
            "- It meets on Monday.",
            "## It meets on Monday",
            "Of course. It meets on Monday. I hope this helps!",
            "Thanks for asking, it meets on Monday.\n\nLet me know if you need anything else.",
            "It meets on Monday. Feel free to ask if you have any further questions!",
        ],
    )
    def test_politeness_and_markup_say_nothing(self, fresh: str) -> None:
        label = at_a_glance(fresh, "It meets on Monday.")
        assert label is not None
        assert (label.right, label.source) == (True, "equal")

    @pytest.mark.parametrize(
        ("fresh", "cached"),
        [
            ("It moved by +5 points.", "It moved by -5 points."),
            ("It is 5 % of it.", "It is 5 of it."),
            ("It costs £5.", "It costs 5."),
            ("It is open.", "It is not open."),
            ("It is x = 5.", "It is x > 5."),
        ],
    )
    async def test_a_sign_beside_a_number_and_a_negation_need_no_judge(
        self, fresh: str, cached: str
    ) -> None:
        for pair in ((fresh, cached), (cached, fresh)):
            label = at_a_glance(*pair)
            assert label is not None
            assert (label.right, label.source) == (False, "facts")

    @pytest.mark.parametrize(
        ("fresh", "cached"),
        [
            ("Take MATH 370 first.", "You need MATH 370."),
            ("No, auditors cannot take it.", "Auditors cannot enrol."),
            ("> It meets on Monday, in the hall.", "The hall, on Monday."),
            ("- 3 labs are held", "3 labs"),
        ],
    )
    def test_what_counts_nothing_is_for_a_judge(self, fresh: str, cached: str) -> None:
        assert at_a_glance(fresh, cached) is None

    def test_what_is_nothing_but_polite_says_what_it_says(self) -> None:
        label = at_a_glance("Sure!", "Thank you!")
        assert label is None or not label.right

    async def test_the_unclear_is_judged_and_without_a_judge_wrong(self) -> None:
        pair = ("pay it in the app or by post", "pay it in the app or by phone please")

        async def yes(question: str, fresh: str, cached: str) -> bool:
            return True

        alone = await agree("q", *pair, embed=embed)
        judged = await agree("q", *pair, embed=embed, judge=yes)
        assert (alone.right, alone.source) == (False, "unclear")
        assert (judged.right, judged.source) == (True, "judge")

    def test_empty_answers_are_the_same_answer(self) -> None:
        label = at_a_glance("", "")
        assert label is not None
        assert label.right
