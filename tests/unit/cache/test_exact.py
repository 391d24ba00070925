"""The exact cache as a layer: what it answers, what it stores, what it says of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from cache.exact import Exact, Record, Shelf, StoredOnly, Terms
from cache.key import key_of
from cache.replay import Recording
from cache.store.base import StoreFault, StoreStats, Which
from cache.store.memory import MemoryStore
from engine.contract import (
    Answer,
    Burst,
    CacheStatus,
    Call,
    Directives,
    End,
    Failed,
    Json,
    Message,
    NotCached,
    Part,
    Sampling,
    Start,
    Trail,
    Usage,
    unroll,
)
from tests.support.recordings import FakeClock, Inner, answer_of, call_of, fails, hear, said


@dataclass
class House:
    """Exact over Record over a fake model, on one shelf."""

    inner: Inner = field(default_factory=Inner)
    clock: FakeClock = field(default_factory=FakeClock)
    terms: Terms = field(default_factory=lambda: Terms(ttl_s=100.0))
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = MemoryStore(1 << 20, clock=self.clock)
        self.shelf = Shelf(
            self.store,
            terms_of=lambda _call, _trail: self.terms,
            clock=self.clock,
            on_fault=lambda what, error: self.faults.append(f"{what}: {error}"),
        )
        self.exact = Exact(self.shelf, Record(self.shelf, StoredOnly(self.inner)))

    def ask(self, call: Call, trail: Trail) -> Answer:
        return self.exact(call, trail)


@pytest.fixture
def house() -> House:
    return House()


def trail_of(name: str = "r1", **directives: object) -> Trail:
    return Trail(name, directives=Directives(**directives))  # type: ignore[arg-type]


async def test_a_first_request_is_a_miss_and_passes_untouched(house: House) -> None:
    trail = trail_of()
    assert await hear(house.ask(call_of(), trail)) == list(house.inner.events)
    assert trail.cache == [CacheStatus("exact", forward="miss")]
    assert trail.age_s is None
    assert "exact" in trail.spans_ms


async def test_a_second_request_hears_the_same_answer_and_computes_nothing(house: House) -> None:
    first = await hear(house.ask(call_of(), trail_of()))
    house.clock.now += 30
    trail = trail_of("r2")
    second = await hear(house.ask(call_of(), trail))
    assert second[0] == Start("r2", 1_700_000_000, "demo", "exact")
    assert second[1:-1] == first[1:-1]
    assert second[-1] == End(Usage(5, 2, 2, computed_tokens=0))
    assert trail.cache == [CacheStatus("exact", hit=True, ttl_s=70.0)]
    assert trail.age_s == 30.0
    assert len(house.inner.calls) == 1


async def test_the_answer_is_stored_before_anyone_sees_its_end(house: House) -> None:
    key = house.shelf.key(call_of())
    async for event in house.ask(call_of(), trail_of()):
        stored = await house.store.get(key) is not None
        assert stored == isinstance(event, End)


async def test_an_answer_that_its_reader_leaves_is_not_stored_and_is_closed(house: House) -> None:
    answer = house.ask(call_of(), trail_of())
    await anext(answer)
    await anext(answer)
    await answer.aclose()
    assert house.inner.closed == 1
    await hear(house.ask(call_of(), trail_of()))
    assert len(house.inner.calls) == 2


async def test_a_failure_passes_and_is_not_stored(house: House) -> None:
    house.inner.events, house.inner.error = answer_of("a")[:2], Failed("broken")
    assert (await fails(house.ask(call_of(), trail_of()))).message == "broken"
    house.inner.events, house.inner.error = answer_of("a"), None
    assert said(await hear(house.ask(call_of(), trail_of()))) == "a"
    assert len(house.inner.calls) == 2


async def test_an_unfit_answer_is_passed_on_and_not_stored(house: House) -> None:
    house.inner.events = answer_of("a")[:-1]
    await hear(house.ask(call_of(), trail_of()))
    house.inner.events = answer_of("near", origin="semantic")
    await hear(house.ask(call_of(), trail_of()))
    await hear(house.ask(call_of(), trail_of()))
    assert len(house.inner.calls) == 3
    assert house.shelf.unfit == 2


async def test_a_hit_is_one_burst_with_a_memo_that_lives_on(house: House) -> None:
    await hear(house.ask(call_of(), trail_of()))
    events = [event async for event in house.ask(call_of(), trail_of())]
    assert len(events) == 3
    assert isinstance(events[1], Burst)
    events[1].memo["sse"] = b"rendered"
    again = [event async for event in house.ask(call_of(), trail_of())]
    assert isinstance(again[1], Burst)
    assert again[1].memo["sse"] == b"rendered"


# ---------------------------------------------------------------------- isolation

BASE = call_of()
OTHERS = {
    "scope": call_of(scope="tenant:other"),
    "model": call_of(model="large"),
    "fingerprint": call_of(fingerprint="weights-2"),
    "policy": call_of(policy="max-error=0"),
    "text": call_of("What is the capital of france?"),
    "role": call_of(messages=(replace(BASE.messages[0], role="system"),)),
    "history": call_of(messages=(Message("system", (Part("text", ""),)), *BASE.messages)),
    "seed": call_of(sampling=Sampling(seed=1)),
    "temperature 0": call_of(sampling=Sampling(temperature=0.0)),
    "logit_bias": call_of(sampling=Sampling(logit_bias=((1, 1.0),))),
    "max_tokens": call_of(max_tokens=5),
    "stop": call_of(stop=("x",)),
    "logprobs": call_of(logprobs=True),
    "top_logprobs": call_of(top_logprobs=2),
    "tools": call_of(tools=Json("[]")),
    "response_format": call_of(response_format=Json('{"type":"text"}')),
    "chat_template_kwargs": call_of(chat_template_kwargs=Json('{"enable_thinking":false}')),
    "unknown parameter": call_of(extra=Json('{"reasoning_effort":"high"}')),
}


@pytest.mark.parametrize("name", OTHERS)
async def test_a_call_that_differs_anywhere_never_hits(house: House, name: str) -> None:
    await hear(house.ask(BASE, trail_of()))
    trail = trail_of()
    await hear(house.ask(OTHERS[name], trail))
    assert trail.cache == [CacheStatus("exact", forward="miss")]
    assert len(house.inner.calls) == 2


# ---------------------------------------------------------------------- Cache-Control


async def test_no_store_neither_reads_nor_writes(house: House) -> None:
    await hear(house.ask(call_of("new"), trail_of(no_store=True)))
    await hear(house.ask(call_of("new"), trail_of()))
    trail = trail_of(no_store=True)
    await hear(house.ask(call_of("new"), trail))
    assert trail.cache == [CacheStatus("exact", forward="request")]
    assert len(house.inner.calls) == 3


async def test_no_cache_writes_and_does_not_read(house: House) -> None:
    await hear(house.ask(call_of(), trail_of()))
    house.inner.events = answer_of("newer")
    trail = trail_of(no_cache=True)
    assert said(await hear(house.ask(call_of(), trail))) == "newer"
    assert trail.cache == [CacheStatus("exact", forward="request")]
    assert said(await hear(house.ask(call_of(), trail_of()))) == "newer"
    assert len(house.inner.calls) == 2


async def test_max_age_refuses_what_is_older_and_renews_it(house: House) -> None:
    await hear(house.ask(call_of(), trail_of()))
    house.clock.now += 10
    await hear(house.ask(call_of(), trail_of(max_age_s=10)))
    assert len(house.inner.calls) == 1
    house.clock.now += 1
    trail = trail_of(max_age_s=10)
    await hear(house.ask(call_of(), trail))
    assert trail.cache == [CacheStatus("exact", forward="request")]
    trail = trail_of(max_age_s=0)
    await hear(house.ask(call_of(), trail))
    assert trail.cache[0].hit
    assert len(house.inner.calls) == 2


async def test_only_if_cached_answers_from_the_store_or_not_at_all(house: House) -> None:
    error = await fails(house.ask(call_of(), trail_of(only_if_cached=True)))
    assert isinstance(error, NotCached)
    assert error.status == 504
    assert house.inner.calls == []
    await hear(house.ask(call_of(), trail_of()))
    assert said(await hear(house.ask(call_of(), trail_of(only_if_cached=True)))) == "Paris"
    both = trail_of(only_if_cached=True, no_cache=True)
    assert isinstance(await fails(house.ask(call_of(), both)), NotCached)


async def test_who_wants_what_is_stored_waits_for_nobodys_generation(house: House) -> None:
    assert house.shelf.may_share(call_of(), trail_of())
    assert not house.shelf.may_share(call_of(), trail_of(only_if_cached=True))


# ---------------------------------------------------------------------- terms


async def test_an_entry_lives_as_long_as_the_terms_say(house: House) -> None:
    await hear(house.ask(call_of(), trail_of()))
    house.clock.now += 100
    trail = trail_of()
    await hear(house.ask(call_of(), trail))
    assert trail.cache == [CacheStatus("exact", forward="miss")]
    house.terms = Terms(ttl_s=20.0)
    house.clock.now += 20
    trail = trail_of()
    await hear(house.ask(call_of(), trail))
    assert trail.cache == [CacheStatus("exact", forward="stale")]
    assert len(house.inner.calls) == 3


async def test_asked_for_randomness_is_bypassed_unless_the_terms_allow(house: House) -> None:
    call = call_of(sampling=Sampling(temperature=0.7))
    trail = trail_of()
    await hear(house.ask(call, trail))
    await hear(house.ask(call, trail))
    assert trail.cache == [CacheStatus("exact", forward="bypass")] * 2
    house.terms = Terms(allow_sampling=True)
    await hear(house.ask(call, trail_of()))
    await hear(house.ask(call, trail_of()))
    assert len(house.inner.calls) == 3


async def test_a_tenant_without_cache_is_bypassed(house: House) -> None:
    house.terms = Terms(enabled=False)
    for _ in range(2):
        trail = trail_of()
        await hear(house.ask(call_of(), trail))
        assert trail.cache == [CacheStatus("exact", forward="bypass")]
    assert len(house.inner.calls) == 2
    assert (await house.store.stats()).entries == 0


async def test_the_requests_tags_purge_its_answer(house: House) -> None:
    trail = trail_of()
    trail.tags = ("report",)
    await hear(house.ask(call_of(), trail))
    assert await house.store.purge(Which(tag="report")) == 1


# ---------------------------------------------------------------------- faults


class BrokenStore:
    """Fails in the way that it is told to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def flush(self) -> None: ...

    async def get(self, key: bytes) -> Recording | None:
        raise self.error

    async def put(self, key: bytes, recording: Recording) -> None:
        raise self.error

    async def purge(self, which: Which) -> int:
        raise self.error

    async def stats(self) -> StoreStats:
        raise self.error


@pytest.mark.parametrize("error", [StoreFault("down"), OSError("disk"), KeyError("a bug")])
async def test_a_faulty_store_costs_its_hits_and_nothing_else(error: Exception) -> None:
    house = House()
    heard: list[str] = []
    shelf = Shelf(BrokenStore(error), on_fault=lambda what, _: heard.append(what))
    exact = Exact(shelf, Record(shelf, house.inner))
    trail = trail_of()
    assert await hear(exact(call_of(), trail)) == list(house.inner.events)
    assert trail.cache == [CacheStatus("exact", forward="miss", detail="store fault")]
    assert heard == ["get", "get", "put"]
    assert shelf.faults == 3


async def test_a_hang_up_during_a_lookup_is_no_fault() -> None:
    class Slow(BrokenStore):
        async def get(self, key: bytes) -> Recording | None:
            await asyncio.sleep(60)
            return None

    shelf = Shelf(Slow(StoreFault("")))
    asking = asyncio.create_task(hear(Exact(shelf, Inner())(call_of(), trail_of())))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert shelf.faults == 0


# ---------------------------------------------------------------------- the second look


async def test_what_is_stored_between_the_two_looks_is_found_and_reported_as_a_hit() -> None:
    house = House()
    await hear(house.ask(call_of(), trail_of()))
    trail = trail_of("late")
    trail.cache.append(CacheStatus("exact", forward="miss"))
    events = await hear(Record(house.shelf, house.inner)(call_of(), trail))
    assert events[0] == Start("late", 1_700_000_000, "demo", "exact")
    assert trail.cache == [CacheStatus("exact", hit=True, ttl_s=100.0)]
    assert len(house.inner.calls) == 1


async def test_a_burst_unrolls_to_what_was_streamed(house: House) -> None:
    streamed = [event async for event in house.ask(call_of(), trail_of())]
    replayed = [e async for event in house.ask(call_of(), trail_of()) for e in unroll(event)]
    assert replayed[1:-1] == streamed[1:-1]


async def test_what_a_store_gives_back_of_another_scope_is_a_miss(house: House) -> None:
    """A damaged store, or one that others write to, puts a stranger's answer under our key."""
    mine, theirs = call_of(scope="tenant:mine"), call_of(scope="tenant:theirs")
    await hear(house.exact(theirs, Trail("t")))
    stored = await house.store.get(key_of(theirs))
    assert stored is not None
    await house.store.put(key_of(mine), stored)
    trail = Trail("m")
    await hear(house.exact(mine, trail))
    assert len(house.inner.calls) == 2
    assert not trail.cache[0].hit
