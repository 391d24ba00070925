"""When to stop asking, and when to ask again."""

from __future__ import annotations

import pytest

from cache.store.breaker import Breaker
from tests.support.recordings import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker(clock, limit=3, cool_down_s=1.0, max_cool_down_s=4.0)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failure()


def test_it_opens_at_the_limit_of_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.closed
    breaker.failure()
    assert breaker.state == "open"


def test_an_answer_in_between_starts_the_count_anew(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.success()
    fail(breaker, 2)
    assert breaker.closed


def test_while_open_no_trial_is_made_before_the_cool_down(
    breaker: Breaker, clock: FakeClock
) -> None:
    fail(breaker, 3)
    assert not breaker.may_try()
    clock.now += 0.9
    assert breaker.wait_s == pytest.approx(0.1)
    assert not breaker.may_try()
    clock.now += 0.2
    assert breaker.may_try()


def test_one_trial_runs_at_a_time(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, 3)
    clock.now += 1.0
    assert breaker.may_try()
    assert not breaker.may_try()


def test_a_trial_that_succeeds_closes_it(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, 3)
    clock.now += 1.0
    breaker.may_try()
    breaker.success()
    assert breaker.closed


def test_each_trial_that_fails_doubles_the_cool_down_to_a_bound(
    breaker: Breaker, clock: FakeClock
) -> None:
    fail(breaker, 3)
    waits = []
    for _ in range(4):
        waits.append(breaker.wait_s)
        clock.now += breaker.wait_s
        assert breaker.may_try()
        breaker.failure()
    assert waits == [1.0, 2.0, 4.0, 4.0]


def test_answers_to_what_was_asked_before_do_not_close_it(breaker: Breaker) -> None:
    fail(breaker, 3)
    breaker.success()
    assert breaker.state == "open"


def test_failures_of_what_was_asked_before_do_not_prolong_it(
    breaker: Breaker, clock: FakeClock
) -> None:
    fail(breaker, 3)
    clock.now += 0.5
    fail(breaker, 10)
    assert breaker.wait_s == pytest.approx(0.5)


@pytest.mark.parametrize(("calm_s", "expected"), [(1.0, 2.0), (60.0, 1.0)])
def test_one_that_opens_again_soon_waits_longer(
    breaker: Breaker, clock: FakeClock, calm_s: float, expected: float
) -> None:
    fail(breaker, 3)
    clock.now += 1.0
    breaker.may_try()
    breaker.success()
    clock.now += calm_s
    fail(breaker, 3)
    assert breaker.wait_s == expected


def test_a_trial_that_told_nothing_is_made_again_after_the_same_time(
    breaker: Breaker, clock: FakeClock
) -> None:
    fail(breaker, 3)
    clock.now += 1.0
    opened = breaker.times_opened
    assert breaker.may_try()
    breaker.undecided()
    assert (breaker.state, breaker.wait_s, breaker.times_opened) == ("open", 1.0, opened)
    clock.now += 1.0
    assert breaker.may_try()
