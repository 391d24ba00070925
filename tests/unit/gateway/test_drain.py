from __future__ import annotations

import pytest

from engine.contract import AnswerError, Overloaded
from gateway.drain import Drain
from gateway.errors import Draining


class Request:
    def __init__(self) -> None:
        self.reason: AnswerError | None = None

    def end(self, reason: AnswerError) -> None:
        self.reason = reason


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def let_in(drain: Drain, tenant: str = "t") -> Request:
    request = Request()
    drain.enter(request)
    try:
        drain.belong(request, tenant)
    except Overloaded:
        drain.leave(request)
        raise
    return request


def test_more_than_the_limit_is_refused_with_a_time_to_come_back() -> None:
    drain = Drain(1, 5.0)
    first = let_in(drain)
    with pytest.raises(Overloaded) as raised:
        let_in(drain)
    assert raised.value.retry_after_s
    drain.leave(first)
    let_in(drain)


def test_a_flood_fills_its_own_part_and_keeps_nobody_out() -> None:
    drain = Drain(10, 5.0)
    flood = [let_in(drain, "noisy") for _ in range(10)]
    others = [let_in(drain, "quiet") for _ in range(5)]
    with pytest.raises(Overloaded):
        let_in(drain, "quiet")
    with pytest.raises(Overloaded):
        let_in(drain, "noisy")
    for request in flood + others:
        drain.leave(request)
    assert drain.inflight == 0
    assert [let_in(drain, "quiet") for _ in range(10)]


def test_a_drain_refuses_what_is_new_and_ends_with_the_last_answer() -> None:
    clock = Clock()
    drain = Drain(10, 5.0, clock)
    inside = Request()
    drain.enter(inside)
    assert not drain.finished()
    drain.begin()
    with pytest.raises(Draining):
        drain.enter(Request())
    assert drain.draining
    assert not drain.finished()
    drain.leave(inside)
    assert drain.finished()


def test_when_the_grace_is_over_the_rest_is_ended() -> None:
    clock = Clock()
    drain = Drain(10, 5.0, clock)
    inside = Request()
    drain.enter(inside)
    drain.begin()
    clock.now = 4.9
    drain.begin()
    assert not drain.finished()
    clock.now = 5.0
    assert drain.finished()
    drain.end_all()
    assert isinstance(inside.reason, Draining)
