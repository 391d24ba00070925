"""What a tenant has beyond its part goes back to who has less, and not a bit further."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract import BadCall, Overloaded
from engine.lent import EIGHTH
from engine.parts import LINGER_S
from engine.sequence import Sequence, State
from tests.support.planning import PAGE, House, alone


def flooded(prompt: int = 12, answer: int = 20, **limits: int) -> House:
    """A house whose every slot is the flood's, with more of it waiting."""
    house = House(num_pages=400, **{"max_waiting": 500, "max_batched_tokens": 64, **limits})
    for _ in range(100):
        house.submit(prompt, answer=answer, tenant="flood")
    while house.scheduler.num_running < house.limits.max_running:
        house.step()
    return house


def running_of(house: House, tenant: str) -> list[Sequence]:
    return [s for s in house.scheduler.running if s.tenant == tenant]


# ----------------------------------------------------------------------- slots


def test_who_is_under_its_part_gets_a_slot_of_a_full_batch_in_the_next_step() -> None:
    house = flooded()
    quiet = house.submit(12, tenant="quiet")
    house.step()
    assert quiet.state is State.RUNNING
    assert quiet.known == 13, "and its first token"
    assert house.scheduler.num_displaced == 1


def test_a_part_is_taken_back_and_nothing_beyond_it() -> None:
    house = flooded()
    for _ in range(8):
        house.submit(12, answer=20, tenant="quiet")
    for _ in range(4):
        house.step()
        assert len(running_of(house, "flood")) >= 4
    assert len(running_of(house, "quiet")) == 4
    assert house.scheduler.num_displaced == 4


def test_the_youngest_gives_way_and_loses_less_than_a_page() -> None:
    house = flooded(prompt=30, answer=30)
    for _ in range(6):
        house.step()
    youngest = max(running_of(house, "flood"), key=lambda s: (s.arrival, s.id))
    computed = youngest.computed
    house.submit(12, tenant="quiet")
    house.step()
    assert youngest.state is State.WAITING
    assert youngest is house.scheduler._waiting.of("flood")[0]
    while youngest.state is State.WAITING:
        house.step()
    while youngest.state is State.RUNNING:
        house.step()
    again = youngest.spent - (youngest.known - 1)
    assert computed > 0
    assert again < PAGE + house.limits.max_running
    assert again <= computed % PAGE
    assert youngest.tokens[30 : youngest.known].tolist() == alone(youngest)


def test_two_with_their_parts_take_nothing_of_each_other() -> None:
    house = House(num_pages=400, max_waiting=500, max_batched_tokens=64)
    for _ in range(60):
        house.submit(12, answer=6, tenant="one")
        house.submit(12, answer=6, tenant="two")
    house.drain()
    assert house.scheduler.num_displaced == 0


def test_who_was_served_more_has_no_claim_on_a_slot() -> None:
    house = flooded()
    house.fair.begin("quiet", 1.0)
    house.fair.charge_input("quiet", 100_000)
    quiet = house.submit(12, tenant="quiet")
    for _ in range(3):
        house.step()
    assert quiet.state is State.WAITING
    assert house.scheduler.num_displaced == 0


# ----------------------------------------------------------------------- pages


def test_pages_are_taken_back_for_a_prompt_within_its_part() -> None:
    house = House(num_pages=64, max_batched_tokens=64, max_running=8)
    for _ in range(7):
        house.submit(30, answer=30, tenant="flood")
    for _ in range(8):
        house.step()
    assert house.scheduler.num_running < 8, "pages are short, not slots"
    held = sum(len(s.pages) for s in running_of(house, "flood"))
    quiet = house.submit(60, tenant="quiet")
    while quiet.state is State.WAITING:
        house.step()
    assert house.scheduler.num_displaced > 0
    assert held > sum(len(s.pages) for s in running_of(house, "flood")) >= 32 - 15
    house.drain()


def test_a_prompt_beyond_its_part_of_the_pages_waits_for_them() -> None:
    house = House(num_pages=64, max_batched_tokens=64, max_running=8)
    for _ in range(7):
        house.submit(30, answer=30, tenant="flood")
    for _ in range(8):
        house.step()
    house.submit(150, tenant="quiet")
    for _ in range(5):
        house.step()
    assert house.scheduler.num_displaced == 0
    house.drain()


# ----------------------------------------------------------------------- steps


def test_a_first_token_is_drawn_in_a_step_without_the_crowd() -> None:
    house = flooded()
    quiet = house.submit(12, tenant="quiet")
    assert [(c.sequence, c.length) for c in house.step()] == [(quiet, 12)]
    assert {c.sequence.tenant for c in house.step()} == {"quiet", "flood"}


def four_at_a_time(**limits: int) -> House:
    """A tenant of which four may run, of 32: no crowd. Each has drawn its first token."""
    house = House(num_pages=400, **{"max_running": 32, "max_batched_tokens": 128, **limits})
    for _ in range(3):
        house.submit(12, answer=30, tenant="limited")
    house.step()
    return house


def test_a_prompt_of_who_has_more_than_its_part_waits_for_anothers_first_token() -> None:
    house = four_at_a_time()
    prompt = house.submit(12, tenant="limited")
    quiet = house.submit(12, tenant="quiet")
    planned = {c.sequence: c.length for c in house.step()}
    assert not house.scheduler._parts.crowds("limited")
    assert planned[quiet] == 12
    assert prompt not in planned
    assert sorted(planned.values()) == [1, 1, 1, 12], "whose answers have begun goes on"
    assert {c.sequence: c.length for c in house.step()}[prompt] == 12, "in the next one"


def test_prompts_of_a_tenant_that_nobody_else_is_beside_wait_for_nobody() -> None:
    house = four_at_a_time()
    prompt = house.submit(12, tenant="limited")
    assert prompt in {c.sequence for c in house.step()}


def test_a_prompt_of_who_was_served_less_does_not_wait() -> None:
    house = four_at_a_time()
    house.submit(4, answer=1, tenant="quiet")
    house.step()
    house.fair.charge_input("quiet", 100_000)
    prompt = house.submit(12, tenant="limited")
    house.submit(12, tenant="quiet")
    assert prompt in {c.sequence for c in house.step()}


def test_prompts_of_who_has_more_than_its_part_are_not_put_off_for_good() -> None:
    house = four_at_a_time(max_batched_tokens=64)
    prompt = house.submit(12, tenant="limited")
    steps = 0
    while not prompt.computed:
        house.submit(30, answer=1, tenant="quiet")
        house.step()
        steps += 1
    assert 1 < steps < 6


def test_a_crowd_sits_out_no_more_steps_than_it_takes_part_in() -> None:
    house = flooded()
    for _ in range(60):
        house.submit(8, answer=1, tenant="quiet")
        house.step()
    assert house.alone > 20
    assert house.alone <= house.together + EIGHTH
    assert house.served["flood"] > house.served["quiet"]


def test_while_others_are_about_the_prompts_of_a_crowd_are_spread() -> None:
    house = flooded(prompt=40, answer=8)
    house.submit(4, answer=1, tenant="quiet")
    house.step()
    crowded = 0
    for _ in range(int(LINGER_S) - 1):
        crowds = house.scheduler._parts.crowds("flood")
        chunks = house.step()
        if crowds:
            crowded += 1
            assert sum(c.length for c in chunks if c.length > 1) <= 64 // EIGHTH
    assert crowded > 4
    assert house.served["flood"] > 0


def test_a_tenant_alone_has_whole_steps_and_every_slot() -> None:
    house = flooded(prompt=40, answer=8)
    sizes = [sum(c.length for c in house.step()) for _ in range(30)]
    assert max(sizes) == 64
    assert house.scheduler.num_displaced == house.alone == 0


def test_some_time_after_the_last_of_another_it_has_them_again() -> None:
    house = flooded(prompt=40, answer=8)
    house.submit(4, answer=1, tenant="quiet")
    house.step()
    house.now += LINGER_S + 2
    sizes = [sum(c.length for c in house.step()) for _ in range(10)]
    assert max(sizes) == 64


# ----------------------------------------------------------------------- anything at any time


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(["a", "b"]), st.integers(1, 30)),
        min_size=1,
        max_size=15,
    ),
    st.sampled_from([1, 2]),
    st.integers(2, 9),
)
def test_nobody_under_its_part_waits_for_a_slot_that_is_lent(
    arrivals: list[tuple[int, str, int]], depth: int, max_running: int
) -> None:
    """Whoever comes when, beside a flood: who waits for a second step has its part already, or was
    served more than those who have more than theirs; and the answers are what they are alone."""
    house = House(200, depth, max_running=max_running, max_batched_tokens=64, max_waiting=200)
    everyone = [house.submit(9, answer=9, tenant="flood") for _ in range(25)]
    by_step: dict[int, list[tuple[str, int]]] = {}
    for at, tenant, prompt in arrivals:
        by_step.setdefault(at, []).append((tenant, prompt))
    owed: set[Sequence] = set()
    for at in range(25):
        for tenant, prompt in by_step.get(at, ()):
            try:
                everyone.append(house.submit(prompt, answer=5, tenant=tenant))
            except (BadCall, Overloaded):
                pytest.fail("there is room for all of these")
        house.step()
        late = owed_a_slot(house)
        assert not (late & owed), "it waited for a second step"
        owed = late
    assert house.served["flood"] > 0
    house.drain()
    assert all(sequence.known == sequence.max_known for sequence in everyone)
    for sequence in everyone[::3]:
        assert sequence.tokens[sequence.num_prompt : sequence.known].tolist() == alone(sequence)


def owed_a_slot(house: House) -> set[Sequence]:
    """First of those who wait, of tenants that have a claim on a slot which is lent. (One whose
    last token is unread cannot come back.)"""
    scheduler, parts, level = house.scheduler, house.scheduler._parts, house.fair.level
    over = [level(s.tenant) for s in scheduler.running if parts.over(s.tenant)]
    if scheduler.num_running < house.limits.max_running or not over:
        return set()
    most = max(over) + house.limits.max_batched_tokens
    heads = [scheduler._waiting.of(tenant)[0] for tenant in {s.tenant for s in scheduler.waiting}]
    return {s for s in heads if not s.ahead and parts.under(s.tenant) and level(s.tenant) <= most}
