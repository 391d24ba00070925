"""Identical requests in flight share one generation.

The fake model speaks only when a test lets it, and a listener is a task that hears all it can, so
every interleaving here is chosen, not timed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.exact import Exact, Record, Shelf, Terms
from cache.join import Join
from cache.replay import Recording
from cache.store.memory import MemoryStore
from engine.contract import (
    Answer,
    AnswerError,
    CacheStatus,
    Call,
    DeadlineExceeded,
    Decision,
    Denied,
    Directives,
    Draft,
    End,
    Failed,
    Overloaded,
    Sampling,
    Start,
    TooMany,
    Trail,
    UpstreamFailed,
    Usage,
    Waste,
    unroll,
)
from tests.support.recordings import FakeClock, answer_of, call_of, said
from tests.support.speakers import Listener, Model, settle

EVENTS = answer_of("a", "b", "c")


@dataclass
class House:
    model: Model = field(default_factory=Model)

    def __post_init__(self) -> None:
        self.join = Join(self.model, may_share=lambda call, _: call.n == 1)
        self.listeners: list[Listener] = []

    async def ask(self, name: str = "r", call: Call | None = None, **trail: object) -> Listener:
        asked = Trail(name, **trail)  # type: ignore[arg-type]
        listener = Listener(self.join, call or call_of(), asked)
        self.listeners.append(listener)
        await settle()
        return listener

    async def close(self) -> None:
        for listener in self.listeners:
            await listener.hang_up()
        assert self.join.in_flight == 0
        assert all(run.closed for run in self.model.runs)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    await made.close()


# ---------------------------------------------------------------------- sharing


async def test_sixteen_identical_requests_are_generated_once(house: House) -> None:
    listeners = [await house.ask(f"r{i}") for i in range(16)]
    [run] = house.model.runs
    await run.say(*EVENTS, None)
    for listener in listeners:
        assert listener.heard[1:-1] == list(EVENTS[1:-1])
    assert house.join.in_flight == 0


async def test_who_comes_late_gets_what_was_said_and_then_the_live_stream(house: House) -> None:
    await house.ask("r1")
    [run] = house.model.runs
    await run.say(*EVENTS[:3])
    late = await house.ask("r2")
    assert late.heard[1:] == list(EVENTS[1:3])
    await run.say(EVENTS[3])
    assert late.heard[1:] == list(EVENTS[1:4])
    await run.say(*EVENTS[4:], None)
    assert late.heard[1:-1] == list(EVENTS[1:-1])


async def test_each_listener_has_its_own_id_and_followers_say_so(house: House) -> None:
    first, second = await house.ask("r1"), await house.ask("r2")
    await house.model.runs[0].say(*EVENTS, None)
    assert first.start == Start("r1", 1_700_000_000, "demo", "small")
    assert second.start == Start("r2", 1_700_000_000, "demo", "joined")


async def test_only_the_owner_is_told_of_what_was_thrown_away() -> None:
    thrown = Waste("small", Usage(5, 2), "too weak")

    async def wasteful(_call: Call, trail: Trail) -> Answer:
        trail.wasted.append(thrown)
        for event in EVENTS:
            yield event
            await asyncio.sleep(0)

    join = Join(wasteful, may_share=lambda _call, _trail: True)
    first, second = (Listener(join, call_of(), Trail(name)) for name in ("r1", "r2"))
    await settle()
    assert first.end == second.end or second.end.usage.computed_tokens == 0
    assert (first.trail.wasted, second.trail.wasted) == ([thrown], [])


async def test_only_the_owner_is_told_of_computed_tokens(house: House) -> None:
    first, second = await house.ask("r1"), await house.ask("r2")
    run = house.model.runs[0]
    await run.say(*EVENTS)
    late = await house.ask("r3")
    assert first.end == EVENTS[-1]
    assert second.end == End(Usage(5, 3, 2, computed_tokens=0))
    assert late.end == second.end
    await run.say(None)


async def test_different_calls_do_not_meet(house: House) -> None:
    await house.ask(call=call_of("one"))
    await house.ask(call=call_of("two"))
    await house.ask(call=call_of("one", scope="tenant:other"))
    assert len(house.model.runs) == 3


async def test_calls_with_different_max_age_do_not_meet(house: House) -> None:
    await house.ask()
    await house.ask(directives=Directives(max_age_s=5))
    await house.ask(directives=Directives(max_age_s=5))
    assert len(house.model.runs) == 2


async def test_what_may_not_be_shared_passes_through_with_its_own_trail(house: House) -> None:
    one, two = await house.ask(call=call_of(n=2)), await house.ask(call=call_of(n=2))
    assert [run.trail for run in house.model.runs] == [one.trail, two.trail]
    assert house.join.in_flight == 0


async def test_a_generation_has_a_trail_of_its_own(house: House) -> None:
    draft = Draft("Par", "semantic")
    first = await house.ask("r1", tenant="acme", share=2.0, drafts=[draft], whole=True)
    [run] = house.model.runs
    assert run.trail is not first.trail
    assert run.trail.whole
    assert (run.trail.tenant, run.trail.share, run.trail.drafts) == ("acme", 2.0, [draft])


async def test_a_later_request_starts_afresh(house: House) -> None:
    await house.ask()
    await house.model.runs[0].say(*EVENTS, None)
    await house.ask()
    assert len(house.model.runs) == 2


# ---------------------------------------------------------------------- hanging up


async def test_the_first_may_hang_up_and_the_others_hear_on(house: House) -> None:
    first, second = await house.ask("r1"), await house.ask("r2")
    [run] = house.model.runs
    await run.say(*EVENTS[:2])
    await first.hang_up()
    assert not run.closed
    await run.say(*EVENTS[2:], None)
    assert said(second.heard) == "abc"


async def test_who_stays_inherits_the_bill(house: House) -> None:
    first = await house.ask("r1", tenant="acme", share=2.0)
    second = await house.ask("r2", tenant="bolt", share=0.5)
    third = await house.ask("r3", tenant="carl")
    [run] = house.model.runs
    await run.say(*EVENTS[:2])
    await first.hang_up()
    assert (run.trail.tenant, run.trail.share) == ("bolt", 0.5)
    await run.say(*EVENTS[2:], None)
    assert second.end == EVENTS[-1]
    assert third.end.usage.computed_tokens == 0


async def test_when_the_last_hangs_up_the_generation_is_closed(house: House) -> None:
    first, second = await house.ask("r1"), await house.ask("r2")
    [run] = house.model.runs
    await run.say(*EVENTS[:2])
    await first.hang_up()
    assert not run.closed
    await second.hang_up()
    assert run.closed
    assert house.join.in_flight == 0


async def test_closing_the_last_answer_returns_when_the_generation_is_closed() -> None:
    house = House()
    answer = house.join(call_of(), Trail("r"))
    first = asyncio.ensure_future(anext(answer))
    await settle()
    await house.model.runs[0].say(EVENTS[0])
    await first
    await answer.aclose()
    assert house.model.runs[0].closed


async def test_an_answer_left_before_it_began_leaves_nothing_behind() -> None:
    house = House()
    answer = house.join(call_of(), Trail("r"))
    await answer.aclose()
    assert house.model.runs == []
    listener = Listener(house.join, call_of(), Trail("r"))
    await asyncio.sleep(0)
    await listener.hang_up()
    assert house.join.in_flight == 0
    assert all(run.closed for run in house.model.runs)


async def test_nobody_joins_a_generation_that_everybody_left(house: House) -> None:
    """The new request comes while the old generation is still closing."""
    closing = asyncio.Event()

    async def slow_to_close(call: Call, trail: Trail) -> Answer:
        runs.append(trail)
        try:
            yield EVENTS[0]
            await asyncio.sleep(3600)
        finally:
            await closing.wait()

    runs: list[Trail] = []
    join = Join(slow_to_close, may_share=lambda _call, _trail: True)
    first = Listener(join, call_of(), Trail("r1"))
    await settle()
    first.task.cancel()
    await settle()
    second = Listener(join, call_of(), Trail("r2"))
    await settle()
    assert len(runs) == 2
    assert isinstance(second.heard[0], Start)
    closing.set()
    await asyncio.wait([first.task])
    await second.hang_up()


async def test_leaving_after_the_end_does_not_cut_what_the_model_still_does(house: House) -> None:
    first = await house.ask()
    [run] = house.model.runs
    await run.say(*EVENTS)
    assert first.task.done()
    assert not run.closed
    await run.say(None)
    assert run.closed


async def test_a_slow_listener_holds_up_nobody(house: House) -> None:
    slow = house.join(call_of(), Trail("slow"))
    first = asyncio.ensure_future(anext(slow))
    await settle()
    fast = await house.ask("fast")
    await house.model.runs[0].say(*EVENTS, None)
    assert said(fast.heard) == "abc"
    rest = [await first] + [event async for event in slow]
    assert said(rest) == "abc"


# ---------------------------------------------------------------------- failing


@pytest.mark.parametrize("said_before", [0, 2])
async def test_one_failure_is_reported_to_everyone(house: House, said_before: int) -> None:
    listeners = [await house.ask(f"r{i}") for i in range(3)]
    [run] = house.model.runs
    await run.say(*EVENTS[:said_before], UpstreamFailed("broken", code="x", retry_after_s=3.0))
    errors = [listener.error for listener in listeners]
    assert all(isinstance(error, UpstreamFailed) for error in errors)
    assert [(e.message, e.code, e.retry_after_s) for e in errors] == [("broken", "x", 3.0)] * 3  # type: ignore[union-attr]
    assert len({id(error) for error in errors}) == 3
    assert [len(listener.heard) for listener in listeners] == [said_before] * 3
    assert len(house.model.runs) == 1
    assert house.join.in_flight == 0


async def test_our_own_bug_becomes_a_failure_that_names_its_cause(house: House) -> None:
    listener = await house.ask()
    bug = ZeroDivisionError("oops")
    await house.model.runs[0].say(bug)
    assert isinstance(listener.error, Failed)
    assert listener.error.__cause__ is bug


async def test_a_cut_answer_is_cut_for_everyone(house: House) -> None:
    first, second = await house.ask("r1"), await house.ask("r2")
    await house.model.runs[0].say(*EVENTS[:2], None)
    assert [len(first.heard), len(second.heard)] == [2, 2]
    assert first.error is None


async def test_a_server_that_stops_the_task_tells_the_listeners(house: House) -> None:
    listener = await house.ask()
    [task] = [t for t in asyncio.all_tasks() if t.get_name().startswith("generation-")]
    task.cancel()
    await settle()
    assert isinstance(listener.error, Failed)


@pytest.mark.parametrize("refusal", [TooMany("rate", retry_after_s=1.0), Denied("budget")])
async def test_another_tenants_refusal_is_not_mine(house: House, refusal: AnswerError) -> None:
    first = await house.ask("r1", tenant="acme")
    same = await house.ask("r2", tenant="acme")
    other = await house.ask("r3", tenant="bolt")
    await house.model.runs[0].say(refusal)
    assert type(first.error) is type(same.error) is type(refusal)
    assert other.error is None
    assert [run.trail.tenant for run in house.model.runs] == ["acme", "bolt"]
    await house.model.runs[1].say(*EVENTS, None)
    assert other.start.origin == "small"
    assert said(other.heard) == "abc"


async def test_an_overload_is_everyones(house: House) -> None:
    await house.ask("r1", tenant="acme")
    other = await house.ask("r2", tenant="bolt")
    await house.model.runs[0].say(Overloaded("full"))
    assert isinstance(other.error, Overloaded)
    assert len(house.model.runs) == 1


# ---------------------------------------------------------------------- deadlines


async def test_a_generation_has_as_long_as_its_most_patient_listener(house: House) -> None:
    now = time.monotonic()
    await house.ask("r1", deadline=now + 100)
    [run] = house.model.runs
    assert run.trail.deadline == now + 100
    patient = await house.ask("r2", deadline=now + 200)
    assert run.trail.deadline == now + 200
    await house.ask("r3", deadline=now + 50)
    assert run.trail.deadline == now + 200
    endless = await house.ask("r4")
    assert run.trail.deadline is None
    await endless.hang_up()
    assert run.trail.deadline == now + 200
    await patient.hang_up()
    assert run.trail.deadline == now + 100


async def test_a_listener_leaves_at_its_own_deadline_and_the_rest_stay(house: House) -> None:
    hurried = await house.ask("r1", deadline=time.monotonic() - 1)
    assert isinstance(hurried.error, DeadlineExceeded)
    assert house.model.runs[0].closed or house.join.in_flight == 0
    patient = await house.ask("r2")
    hurried = await house.ask("r3", deadline=time.monotonic() - 1)
    assert isinstance(hurried.error, DeadlineExceeded)
    await house.model.runs[-1].say(*EVENTS, None)
    assert said(patient.heard) == "abc"


async def test_a_deadline_that_comes_in_the_middle_ends_that_listener_only(house: House) -> None:
    hurried = await house.ask("r1", deadline=time.monotonic() + 1.0)
    patient = await house.ask("r2")
    await house.model.runs[0].say(*EVENTS[:2])
    await asyncio.wait([hurried.task])
    assert isinstance(hurried.error, DeadlineExceeded)
    assert hurried.start.id == "r1"
    await house.model.runs[0].say(*EVENTS[2:], None)
    assert said(patient.heard) == "abc"


async def test_a_deadline_that_the_model_took_from_the_first_is_not_the_followers(
    house: House,
) -> None:
    hurried = await house.ask("r1", deadline=time.monotonic() + 1000)
    patient = await house.ask("r2")
    await house.model.runs[0].say(DeadlineExceeded("too late"))
    assert isinstance(hurried.error, DeadlineExceeded)
    assert len(house.model.runs) == 2
    await house.model.runs[1].say(*EVENTS, None)
    assert said(patient.heard) == "abc"


# ---------------------------------------------------------------------- what is told


async def test_what_happened_inside_is_copied_to_every_listener(house: House) -> None:
    first, second = await house.ask("r1"), await house.ask("r2")
    for listener in (first, second):
        listener.trail.stage("exact", 0.0, 0.5 / 1e3)
        listener.trail.cache.append(CacheStatus("exact", forward="miss"))
    [run] = house.model.runs
    run.trail.stage("queue", 0.0, 3.0 / 1e3)
    run.trail.cache.append(CacheStatus("semantic", forward="miss"))
    run.trail.decisions.append(Decision("cascade", "small", "cheap"))
    await run.say(*EVENTS[:2])
    run.trail.stage("decode", 0.0, 9.0 / 1e3)
    run.trail.decisions.append(Decision("cascade", "kept", "sure"))
    await run.say(*EVENTS[2:], None)
    for listener in (first, second):
        assert listener.trail.spans_ms == {"exact": 0.5, "queue": 3.0, "decode": 9.0}
        assert [d.choice for d in listener.trail.decisions] == ["small", "kept"]
    inside = CacheStatus("semantic", forward="miss")
    assert first.trail.cache == [CacheStatus("exact", forward="miss"), inside]
    assert second.trail.cache == [CacheStatus("exact", forward="miss", collapsed=True), inside]


async def test_a_semantic_hit_keeps_its_origin_for_followers(house: House) -> None:
    await house.ask("r1")
    second = await house.ask("r2")
    await house.model.runs[0].say(*answer_of("near", origin="semantic"), None)
    assert second.start.origin == "semantic"


async def test_an_answer_can_be_purged_by_the_tags_of_any_listener(house: House) -> None:
    await house.ask("r1", tags=("a", "b"))
    await house.ask("r2", tags=("b", "c"))
    assert house.model.runs[0].trail.tags == ("a", "b", "c")


# ---------------------------------------------------------------------- with the exact cache


class SlowStore(MemoryStore):
    """Reads at once and hands the result over when told to: a lookup that takes a while."""

    def __init__(self) -> None:
        super().__init__(1 << 20, clock=FakeClock())
        self.gates: list[asyncio.Event] = []
        self.slow = False

    async def get(self, key: bytes) -> Recording | None:
        recording = self.look_up(key)
        if self.slow:
            self.gates.append(asyncio.Event())
            await self.gates[-1].wait()
        return recording


@dataclass
class Whole:
    """Exact, Join, Record and a fake model."""

    model: Model = field(default_factory=Model)
    store: SlowStore = field(default_factory=SlowStore)

    def __post_init__(self) -> None:
        self.shelf = Shelf(self.store, terms_of=lambda _call, _trail: Terms(), clock=FakeClock())
        self.join = Join(
            Record(self.shelf, self.model), may_share=self.shelf.may_share, key=self.shelf.key
        )
        self.exact = Exact(self.shelf, self.join)

    async def ask(self, name: str, **trail: object) -> Listener:
        listener = Listener(self.exact, call_of(), Trail(name, **trail))  # type: ignore[arg-type]
        await settle()
        return listener


async def test_a_joined_answer_is_stored_once_though_its_first_caller_left() -> None:
    whole = Whole()
    first, second = await whole.ask("r1"), await whole.ask("r2")
    await whole.model.runs[0].say(*EVENTS[:2])
    await first.hang_up()
    await whole.model.runs[0].say(*EVENTS[2:], None)
    assert said(second.heard) == "abc"
    third = await whole.ask("r3")
    assert third.start.origin == "exact"
    assert len(whole.model.runs) == 1
    assert second.trail.cache == [CacheStatus("exact", forward="miss", collapsed=True)]


async def test_a_request_that_missed_just_before_the_end_is_not_generated_again() -> None:
    """It reads the store before the answer is in, and reaches the join after it has left."""
    whole = Whole()
    first = await whole.ask("r1")
    whole.store.slow = True
    between = await whole.ask("r2")
    whole.store.slow = False
    await whole.model.runs[0].say(*EVENTS, None)
    assert said(first.heard) == "abc"
    assert whole.join.in_flight == 0
    assert between.heard == []
    whole.store.gates[0].set()
    await settle()
    assert len(whole.model.runs) == 1
    assert between.start == Start("r2", 1_700_000_000, "demo", "exact")
    [status] = between.trail.cache
    assert status.hit
    assert between.end.usage.computed_tokens == 0


async def test_a_request_between_the_stored_answer_and_its_end_finds_one_of_them() -> None:
    """At every step of the ending, a new request is answered without a new generation."""
    for steps in range(40):
        whole = Whole()
        await whole.ask("r1")
        run = whole.model.runs[0]
        for event in (*EVENTS, None):
            run._orders.put_nowait(event)
        for _ in range(steps):
            await asyncio.sleep(0)
        second = await whole.ask("r2")
        await settle()
        assert said([e for event in second.heard for e in unroll(event)]) == "abc"
        assert second.start.origin in ("joined", "exact")
        assert len(whole.model.runs) == 1


async def test_best_of_n_sampling_is_not_collapsed() -> None:
    whole = Whole()
    call = call_of(sampling=Sampling(temperature=0.8))
    for name in ("r1", "r2", "r3"):
        Listener(whole.exact, call, Trail(name))
    await settle()
    assert len(whole.model.runs) == 3


@pytest.mark.parametrize("directives", [Directives(no_store=True), Directives(no_cache=True)])
async def test_who_wants_it_fresh_neither_joins_nor_is_joined(directives: Directives) -> None:
    whole = Whole()
    await whole.ask("r1")
    await whole.ask("r2", directives=directives)
    await whole.ask("r3", directives=directives)
    assert len(whole.model.runs) == 3
    await whole.ask("r4")
    assert len(whole.model.runs) == 3


# ---------------------------------------------------------------------- any order of events

orders = st.lists(st.sampled_from(["ask", "ask", "speak", "speak", "leave", "yield"]), max_size=40)


@settings(max_examples=60, deadline=None)
@given(orders, st.randoms(use_true_random=False))
def test_in_any_order_of_events_everyone_who_stays_hears_one_whole_answer(
    steps: list[str], random: object
) -> None:
    async def play() -> None:
        whole = Whole()
        listeners: list[Listener] = []
        spoken: dict[int, int] = {}
        for number, step in enumerate(steps):
            live = [item for item in listeners if not item.task.done()]
            if step == "ask":
                listeners.append(Listener(whole.exact, call_of(), Trail(f"r{number}")))
            elif step == "leave" and live:
                random.choice(live).task.cancel()  # type: ignore[attr-defined]
            elif step == "speak":
                for i, run in enumerate(whole.model.runs):
                    at = spoken.get(i, 0)
                    spoken[i] = at + 1
                    run._orders.put_nowait((*EVENTS, None)[at] if at <= len(EVENTS) else None)
            await asyncio.sleep(0)
        await settle()
        open_runs = [run for run in whole.model.runs if not run.closed]
        assert len(open_runs) <= 1
        assert whole.join.in_flight == len(open_runs)
        # One that has said End is let close by itself: it may have no listeners any more.
        unended = [
            run for run in open_runs if spoken.get(whole.model.runs.index(run), 0) < len(EVENTS)
        ]
        assert bool(unended) == any(not item.task.done() for item in listeners)
        for run in open_runs:
            at = spoken.get(whole.model.runs.index(run), 0)
            await run.say(*(*EVENTS, None)[at:])
        for item in listeners:
            if item.task.cancelled():
                continue
            assert item.task.done()
            parts = [part for event in item.heard for part in unroll(event)]
            assert said(parts) == "abc"
            assert isinstance(parts[-1], End)
        payers = [i for i in listeners if not i.task.cancelled() and i.end.usage.computed_tokens]
        assert len(payers) <= len(whole.model.runs)
        assert whole.join.in_flight == 0

    asyncio.run(play())
