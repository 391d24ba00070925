from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract import BadCall, Overloaded
from engine.scheduler import Limits
from engine.sequence import SamplingParams, Sequence, State
from engine.space import Space
from radix import check
from tests.support.planning import PAGE, House, alone

# ----------------------------------------------------------------------- budget and chunks


def test_decodes_go_first_and_a_long_prompt_takes_what_is_left() -> None:
    house = House(num_pages=128)
    short = [house.submit(3, answer=20) for _ in range(3)]
    house.step()
    long = house.submit(100)
    chunks = house.step()
    assert [(c.sequence, c.length) for c in chunks] == [*((s, 1) for s in short), (long, 29)]


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    house = House(num_pages=128)
    house.submit(70)
    assert [[c.length for c in house.step()] for _ in range(4)] == [[32], [32], [6], [1]]


def test_a_budget_that_leaves_nothing_for_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="max_batched_tokens"):
        Limits(max_batched_tokens=8, max_running=8)


# ----------------------------------------------------------------------- prefixes


def test_what_was_computed_before_is_not_computed_again() -> None:
    house = House()
    prompt = list(range(100, 121))
    house.submit(prompt)
    house.drain()
    again = house.submit(prompt)
    house.drain()
    assert again.cached == 20
    assert again.spent == 1 + 3


def test_at_least_one_token_is_computed_of_a_prompt_that_is_all_cached() -> None:
    house = House()
    prompt = list(range(100, 120))
    house.submit(prompt)
    house.drain()
    again = house.submit(prompt)
    house.drain()
    assert again.cached == 16


def test_an_answer_can_be_the_prefix_of_the_next_prompt() -> None:
    house = House()
    first = house.submit(10, answer=11)
    house.drain()
    follow_up = house.submit([*first.tokens[: first.known].tolist(), 1, 2, 3])
    house.drain()
    assert follow_up.cached == 20


def test_prompts_with_one_beginning_are_not_compared_pair_by_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(num_pages=1000, max_running=60, max_batched_tokens=1000)
    beginning = list(range(80))
    house.submit([*beginning, 1], answer=9)
    house.step()
    compared, common = [], Space.common

    def counting(self: Space, one: Sequence, other: Sequence) -> int:
        compared.append(one)
        return common(self, one, other)

    monkeypatch.setattr(Space, "common", counting)
    for number in range(50):
        house.submit([*beginning, *range(1000 * number + 200, 1000 * number + 210)])
    house.step()
    assert len(house.scheduler.running) == 51
    assert not compared


def test_siblings_wait_for_the_first_and_share_its_prompt() -> None:
    house = House(num_pages=128, max_batched_tokens=64)
    siblings = [house.sequence(list(range(41))) for _ in range(3)]
    house.scheduler.submit(siblings)
    assert len(house.step()) == 1
    house.step()
    assert [s.cached for s in siblings] == [0, 40, 40]
    shared = [s.pages[:10] for s in siblings]
    assert shared[0] == shared[1] == shared[2]


def test_others_do_not_wait_for_a_prompt_that_they_do_not_share() -> None:
    house = House(num_pages=128, max_batched_tokens=64)
    house.submit([1, 2, 3, 4, *range(100, 130)])
    house.submit([1, 2, 3, 4, *range(200, 220)])
    assert len(house.step()) == 2


def test_tenants_of_different_scopes_share_nothing() -> None:
    house = House()
    prompt = list(range(30))
    house.submit(prompt, namespace="a")
    house.drain()
    other = house.submit(prompt, namespace="b")
    house.drain()
    assert other.cached == 0


def test_the_longest_cached_prefix_goes_first_but_overtakes_only_so_often() -> None:
    house = House(num_pages=256, max_running=1, max_batched_tokens=64, max_overtakes=2)
    warm = list(range(500, 520))
    house.submit(warm)
    house.drain()
    cold = house.submit(20)
    hot = [house.submit([*warm, 900 + at]) for at in range(4)]
    order: list[Sequence] = []
    while house.scheduler.has_work:
        order += [c.sequence for c in house.step() if c.sequence not in order]
    assert order == [hot[0], hot[1], cold, hot[2], hot[3]]


# ----------------------------------------------------------------------- memory


def test_a_prompt_is_admitted_whole_or_not_at_all() -> None:
    house = House(num_pages=16)
    first = house.submit(32, answer=8)
    house.step()
    second = house.submit(32)
    house.step()
    assert first.state is State.RUNNING
    assert second.state is State.WAITING
    assert second.pages == []
    house.drain()
    assert second.state is State.FINISHED


def test_cached_pages_make_room_for_new_prompts() -> None:
    house = House(num_pages=16)
    for _ in range(5):
        house.submit(50)
        house.drain()
    assert house.tree.stats().evicted > 0


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    house = House(num_pages=8)
    house.submit(20, answer=13)  # 32 tokens of KV and one that is never computed on
    with pytest.raises(BadCall, match=r"prompt \(20 tokens\).*max_tokens \(14\).*33") as caught:
        house.submit(20, answer=14)
    assert caught.value.param == "max_tokens"
    house.drain()


def test_out_of_pages_the_youngest_gives_way_and_comes_back() -> None:
    house = House(num_pages=14, max_batched_tokens=64)
    old = house.submit(20, answer=30)
    house.step()
    young = house.submit(20, answer=30)
    while house.scheduler.num_preemptions == 0:
        house.step()
    assert (old.state, young.state) == (State.RUNNING, State.WAITING)
    assert young.computed == 0
    assert young.known > 20
    house.drain()
    assert young.known == old.known == 50


def test_the_victim_is_of_the_tenant_furthest_over_its_share() -> None:
    house = House(num_pages=14, max_batched_tokens=64)
    greedy = house.submit(20, answer=30, tenant="greedy")
    house.fair.charge_input("greedy", 1000)
    modest = house.submit(20, answer=30, tenant="modest")
    house.fair._level["modest"] = 0.0
    while house.scheduler.num_preemptions == 0:
        house.step()
    assert (greedy.state, modest.state) == (State.WAITING, State.RUNNING)
    house.drain()


def test_two_long_answers_do_not_throw_each_other_out_for_every_page() -> None:
    house = House(num_pages=64, max_batched_tokens=256)
    for _ in range(8):
        house.submit(8, answer=240)
    house.drain()
    assert 0 < house.scheduler.num_preemptions <= 12  # 18 if they came back as soon as they fit


def test_a_dropped_sequence_frees_its_pages_wherever_it_stands() -> None:
    house = House(num_pages=16)
    running = house.submit(20)
    waiting = house.submit(50)
    house.step()
    house.scheduler.drop(waiting)
    house.scheduler.drop(running)
    assert not house.scheduler.has_work
    assert house.tree.pages.num_running == 0
    check(house.tree)


def test_pages_of_a_broken_step_are_not_published() -> None:
    house = House()
    sequence = house.submit(20)
    house.scheduler.plan()
    sequence.computed = 20  # as if advance had run on garbage
    house.scheduler.drop(sequence, publish=False)
    assert house.tree.stats().cached == 0
    assert house.tree.stats().free == 64


# ----------------------------------------------------------------------- the queue


def test_a_full_queue_is_said_so_with_a_time_to_come_back() -> None:
    house = House(max_waiting=2)
    house.submit(5)
    house.submit(5)
    with pytest.raises(Overloaded, match="limit is 2") as caught:
        house.submit(5)
    assert caught.value.retry_after_s == 5.0
    house.drain()


def test_retry_after_follows_how_fast_requests_finish() -> None:
    house = House(max_waiting=40)
    for _ in range(60):
        house.submit(2, answer=1)
        house.step()
    for _ in range(40):
        house.submit(5)
    with pytest.raises(Overloaded) as caught:
        house.submit(5)
    assert caught.value.retry_after_s == pytest.approx(40.0, rel=0.3)


def test_an_idle_night_does_not_change_how_long_a_full_queue_lasts() -> None:
    house = House(max_waiting=40)
    for _ in range(60):
        house.submit(2, answer=1)
        house.step()
    house.now += 40_000.0
    for _ in range(40):
        house.submit(5)
    with pytest.raises(Overloaded) as caught:
        house.submit(5)
    assert caught.value.retry_after_s == pytest.approx(40.0, rel=0.3)


def test_answers_that_take_minutes_make_a_full_queue_last_minutes() -> None:
    house = House(max_waiting=4, max_running=1)
    house.submit(2, answer=100)
    house.drain()
    for _ in range(5):
        house.submit(2, answer=100)
        house.step()
    with pytest.raises(Overloaded) as caught:
        house.submit(2)
    assert caught.value.retry_after_s == 60.0


def test_a_flood_of_one_tenant_leaves_room_in_the_queue_for_others() -> None:
    house = House(max_waiting=4)
    for _ in range(4):
        house.submit(5, tenant="flood")
    house.submit(5, tenant="other")
    with pytest.raises(Overloaded):
        house.submit(5, tenant="flood")


def test_choices_of_one_call_are_queued_all_or_none() -> None:
    house = House(max_waiting=2)
    with pytest.raises(Overloaded):
        house.scheduler.submit([house.sequence(5) for _ in range(3)])
    assert house.scheduler.num_waiting == 0


# ----------------------------------------------------------------------- fairness


def served_while_both_wait(
    shares: dict[str, float], sizes: dict[str, tuple[int, int]], steps: int = 600
) -> tuple[House, list[dict[str, float]]]:
    """Two tenants who always have something waiting; what each was served, after each step."""
    house = House(num_pages=64, max_running=6, max_batched_tokens=48)
    history = []
    for _ in range(steps):
        for tenant, share in shares.items():
            while len(house.scheduler._waiting.of(tenant)) < 4:
                prompt, answer = sizes[tenant]
                house.submit(prompt, answer=answer, tenant=tenant, share=share)
        house.step()
        history.append({t: house.served.get(t, 0.0) / shares[t] for t in shares})
    return house, history


def test_backlogged_tenants_are_served_alike_within_the_bound_of_vtc() -> None:
    sizes = {"long": (40, 12), "short": (4, 6)}
    _, history = served_while_both_wait({"long": 1.0, "short": 1.0}, sizes)
    bound = 2 * max(40, 2 * 64 * PAGE)
    gaps = [abs(now["long"] - now["short"]) for now in history]
    assert max(gaps) <= bound
    assert history[-1]["long"] > 4 * bound  # or the bound would say nothing


def test_shares_divide_the_service() -> None:
    sizes = {"big": (16, 8), "small": (16, 8)}
    house, _ = served_while_both_wait({"big": 3.0, "small": 1.0}, sizes)
    assert house.served["big"] / house.served["small"] == pytest.approx(3.0, rel=0.15)


def test_a_flood_does_not_delay_a_tenant_who_asks_now_and_then() -> None:
    house = House(num_pages=64, max_running=4, max_waiting=500)
    for _ in range(200):
        house.submit(12, answer=4, tenant="flood")
    for _ in range(10):
        house.step()
    modest = house.submit(12, answer=4, tenant="modest")
    steps = 0
    while modest.state is not State.FINISHED:
        house.step()
        steps += 1
    assert steps <= 12
    assert house.scheduler.num_waiting > 100


# ----------------------------------------------------------------------- anything at any time

OPS = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from(["a", "b", "c"]),
        st.lists(st.integers(0, 1), min_size=1, max_size=24),
        st.integers(1, 24),
        st.integers(1, 3),
    ),
    st.tuples(st.just("step"), st.integers(1, 5)),
    st.tuples(st.just("lack")),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OPS, max_size=40), st.integers(12, 24), st.sampled_from([1, 2]))
def test_whatever_comes_and_goes_every_page_is_accounted_for_and_everyone_is_served(
    ops: list[tuple[object, ...]], num_pages: int, depth: int
) -> None:
    house = House(num_pages, depth, max_running=4, max_batched_tokens=12, max_waiting=20)
    alive: list[Sequence] = []
    for op, *args in ops:
        if op == "submit":
            alive += submit_siblings(house, *args)  # type: ignore[arg-type]
        elif op == "step":
            for _ in range(int(args[0])):  # type: ignore[call-overload]
                if house.scheduler.has_work:
                    house.step()
        elif op == "lack":
            if house.scheduler.has_work:
                house.lack()
        elif alive:
            house.scheduler.drop(alive.pop(int(args[0]) % len(alive)))  # type: ignore[call-overload]
            house.check()
    house.drain()
    for sequence in alive:
        assert sequence.known == sequence.max_known
        assert sequence.tokens[sequence.num_prompt : sequence.known].tolist() == alone(sequence)


def submit_siblings(
    house: House, tenant: str, tokens: list[int], answer: int, count: int
) -> list[Sequence]:
    params = SamplingParams(presence_penalty=float(answer % 2))
    siblings = [
        house.sequence(tokens, answer, tenant, namespace=tenant, params=params)
        for _ in range(count)
    ]
    try:
        house.scheduler.submit(siblings)
    except (BadCall, Overloaded):
        return []
    return siblings


def test_a_step_launched_ahead_computes_on_what_is_not_read_yet() -> None:
    house = House(depth=2)
    sequence = house.submit(6, answer=5)
    house.step()
    assert (sequence.known, sequence.ahead, sequence.computed) == (6, 1, 6)
    house.step()
    assert (sequence.known, sequence.ahead, sequence.computed) == (7, 1, 7)
    house.drain()
    assert house.runner.steps == 5, "the length was known, nothing had to run too far"
    assert sequence.spent == 6 + 4


def test_an_answer_that_ends_by_a_token_has_run_one_too_far_and_leaves_nothing_behind() -> None:
    one, two = House(), House(depth=2)
    prompt = list(range(6))
    whole = one.submit(prompt, answer=12)
    one.drain()
    two.ends = one.ends = int(whole.tokens[6 + 4])
    short, ahead = one.submit(prompt, answer=12), two.submit(prompt, answer=12)
    one.drain()
    two.drain()
    assert ahead.known == short.known == 6 + 5
    assert ahead.spent == 6 + 5 == ahead.known + ahead.ahead - 1
    assert ahead.tokens[: ahead.known].tolist() == short.tokens[: short.known].tolist()


def test_what_counts_its_own_tokens_is_never_launched_ahead() -> None:
    house = House(depth=2)
    counting = house.submit(4, answer=6, params=SamplingParams(frequency_penalty=0.5))
    plain = house.submit(5, answer=12)
    for _ in range(6):
        house.step()
    assert counting.known - counting.num_prompt < plain.known - plain.num_prompt
    house.drain()
    assert counting.known == counting.max_known


def test_a_failed_launch_leaves_no_prefix_that_was_never_computed() -> None:
    house = House(depth=2)
    broken = house.submit(16, answer=4)
    house.step()
    assert house.tree.pages.num_cached == 4
    house.scheduler.drop(broken, publish=False)
    house.scheduler.forget()
    assert house.tree.pages.num_free == house.tree.pages.num_pages


def test_scheduling_grows_no_faster_than_what_runs() -> None:
    """Counts calls of the tree, not time: a step of pure decodes asks it once a page."""
    house = House(num_pages=600, max_running=64, max_batched_tokens=2048)
    for _ in range(64):
        house.submit(8, answer=24)
    house.step()
    asked: list[int] = []
    allocate = house.tree.allocate
    house.tree.allocate = lambda n: asked.append(n) or allocate(n)  # type: ignore[method-assign, func-returns-value]
    for _ in range(16):
        house.step()
    assert len(asked) == math.ceil(16 / PAGE)
    assert sum(asked) == 64 * 4
