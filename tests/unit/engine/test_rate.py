from __future__ import annotations

import pytest

from engine.rate import Rate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_steady_stream_is_measured_right_soon_and_late() -> None:
    clock = Clock()
    rate = Rate(clock, decay_s=10.0)
    for second in range(1, 101):
        clock.now += 1.0
        rate.count(4.0)
        if second in (3, 20, 100):
            assert rate.per_s() == pytest.approx(4.0, rel=0.2)


def test_it_fades_when_nothing_happens() -> None:
    clock = Clock()
    rate = Rate(clock, decay_s=10.0)
    for _ in range(20):
        clock.now += 1.0
        rate.count()
    clock.now += 100.0
    assert rate.per_s() < 0.001


def test_waiting_time_follows_the_rate_within_bounds() -> None:
    clock = Clock()
    rate = Rate(clock, decay_s=10.0)
    assert rate.seconds_for(3) == 5.0
    for _ in range(100):
        clock.now += 0.5
        rate.count()
    assert rate.seconds_for(20) == pytest.approx(10.0, rel=0.1)
    assert rate.seconds_for(0) == 1.0
    assert rate.seconds_for(10_000) == 60.0
    clock.now += 1e6  # nothing was counted for so long that the rate is 0 to the machine
    assert rate.seconds_for(1) == rate.seconds_for(1) == 60.0


def test_reading_it_leaves_it_as_it_is() -> None:
    """So that any thread may: what another counts meanwhile is not lost."""
    clock = Clock()
    rate = Rate(clock, decay_s=10.0)
    clock.now += 1.0
    rate.count(8.0)
    clock.now += 5.0
    assert rate.per_s() == rate.per_s()
    clock.now -= 5.0  # what a reader saw is no date to count from
    assert rate.per_s() == pytest.approx(8.0, rel=0.1)
