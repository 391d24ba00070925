"""When a namespace is left alone, and what wakes it."""

from __future__ import annotations

from cache.rest import AWAKE, CLOSED_FOR, Rest


def closed_for(requests: int) -> Rest:
    rest = Rest()
    for _ in range(requests):
        rest.note(allowed=False)
    return rest


def test_it_rests_after_so_many_requests_without_a_hit_allowed() -> None:
    assert not closed_for(CLOSED_FOR - 1).passes()
    assert closed_for(CLOSED_FOR).passes()


def test_while_it_rests_one_of_so_many_is_looked_at() -> None:
    rest = closed_for(CLOSED_FOR)
    assert [rest.passes() for _ in range(2 * AWAKE)].count(False) == 2


def test_one_hit_that_would_be_allowed_wakes_it_and_so_does_another_promise() -> None:
    rest = closed_for(CLOSED_FOR)
    rest.note(allowed=True)
    assert not rest.passes()
    rest = closed_for(CLOSED_FOR)
    rest.wake()
    assert not rest.passes()
