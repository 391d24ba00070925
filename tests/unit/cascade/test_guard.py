"""The breaker's states, the pauses between tries, and the order of fallbacks."""

from __future__ import annotations

import random

import pytest

from cascade.guard import Backoff, Breaker, Fallbacks
from engine.contract import (
    BadCall,
    Call,
    Delta,
    Overloaded,
    Start,
    Trail,
    UpstreamFailed,
)
from tests.support.fake import FakeModel
from tests.support.recordings import FakeClock

ASK = Call("text", "far", "t", prompt="Hi")


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.admit()
        breaker.failed()


def test_failures_in_a_row_open_the_breaker_and_a_success_between_does_not() -> None:
    breaker = Breaker(FakeClock(), failures=3)
    fail(breaker, 2)
    assert breaker.admit()
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.state == "open"
    assert not breaker.admit()
    assert breaker.reopens_in_s == 10.0


def test_half_open_lets_one_through() -> None:
    clock = FakeClock()
    breaker = Breaker(clock, failures=1, cool_down_s=5.0)
    fail(breaker, 1)
    clock.now += 5.0
    assert breaker.state == "half-open"
    assert breaker.admit()
    assert not breaker.admit()
    breaker.succeeded()
    assert breaker.state == "closed"


def test_a_failed_probe_opens_again_for_the_whole_time() -> None:
    clock = FakeClock()
    breaker = Breaker(clock, failures=1, cool_down_s=5.0)
    fail(breaker, 1)
    clock.now += 6.0
    fail(breaker, 1)
    assert breaker.state == "open"
    assert breaker.reopens_in_s == 5.0


def test_an_abandoned_probe_leaves_room_for_another() -> None:
    clock = FakeClock()
    breaker = Breaker(clock, failures=1, cool_down_s=5.0)
    fail(breaker, 1)
    clock.now += 6.0
    assert breaker.admit()
    breaker.abandoned()
    assert breaker.state == "half-open"
    assert breaker.admit()


def test_pauses_grow_are_spread_and_end() -> None:
    backoff = Backoff(random.Random(1), attempts=4, first_s=1.0, most_s=3.0)
    for tried, most in ((1, 1.0), (2, 2.0), (3, 3.0)):
        pauses = [backoff.pause_s(tried, None, None) for _ in range(50)]
        assert all(pause is not None and 0 <= pause <= most for pause in pauses)
        assert len(set(pauses)) > 40
    assert backoff.pause_s(4, None, None) is None


def test_retry_after_is_kept_unless_it_is_too_long() -> None:
    backoff = Backoff(random.Random(1), most_s=8.0)
    assert backoff.pause_s(1, 2.5, None) == 2.5
    assert backoff.pause_s(1, 9.0, None) is None
    assert backoff.pause_s(1, 2.5, 2.0) is None


async def run(answerer: Fallbacks, trail: Trail) -> str:
    return "".join([e.payload async for e in answerer(ASK, trail) if isinstance(e, Delta)])


async def test_the_next_is_asked_when_the_first_cannot() -> None:
    first, second = FakeModel(error=UpstreamFailed("gone")), FakeModel(name="b")
    trail = Trail("r")
    assert await run(Fallbacks([("a", first), ("b", second)]), trail) == "You said: Hi "
    assert trail.decisions[0].choice == "a"
    assert trail.decisions[0].reason == "gone"
    assert second.calls[0].model == "b"


async def test_a_bad_call_is_bad_everywhere() -> None:
    second = FakeModel()
    with pytest.raises(BadCall):
        await run(Fallbacks([("a", FakeModel(error=BadCall("no"))), ("b", second)]), Trail("r"))
    assert not second.calls


async def test_after_start_nothing_else_is_asked() -> None:
    first, second = FakeModel(late_error=UpstreamFailed("cut")), FakeModel()
    with pytest.raises(UpstreamFailed, match="cut"):
        await run(Fallbacks([("a", first), ("b", second)]), Trail("r"))
    assert not second.calls


async def test_the_last_ones_error_is_the_callers() -> None:
    both = [("a", FakeModel(error=UpstreamFailed("1"))), ("b", FakeModel(error=Overloaded("2")))]
    with pytest.raises(Overloaded, match="2"):
        await run(Fallbacks(both), Trail("r"))


async def test_a_hang_up_reaches_the_one_who_answers() -> None:
    first, second = FakeModel(error=UpstreamFailed("gone")), FakeModel()
    answer = Fallbacks([("a", first), ("b", second)])(ASK, Trail("r"))
    assert isinstance(await anext(answer), Start)
    await answer.aclose()
    assert second.closed_early == 1
