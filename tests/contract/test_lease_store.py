"""What every store of budgets promises: SQLite, and a Redis that gateways share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.tenants.lease_store import (
    Account,
    LeaseStore,
    LeaseStoreFault,
    Move,
    Moved,
    SqliteLeaseStore,
)
from gateway.tenants.lease_store_redis import RedisLeaseStore
from tests.support.redis_server import RedisServer
from tests.support.shared import PATIENT_S

Open = Callable[[], LeaseStore]
ACCOUNT = Account("acme:day:2026-11-25", 1000, 4e9)


@pytest.fixture(params=["sqlite", "redis7", "redis8"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    stores: list[LeaseStore] = []
    server: RedisServer | None = None
    if request.param != "sqlite":
        server = request.getfixturevalue(request.param)
        server.client.flushall()

    def open_one() -> LeaseStore:
        store = (
            RedisLeaseStore(server.url, PATIENT_S)
            if server
            else SqliteLeaseStore(tmp_path / "l.db")
        )
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


def test_what_is_leased_is_used_and_what_comes_back_is_free(opened: Open) -> None:
    one, two = opened(), opened()
    assert one.move(ACCOUNT, Move("a", 1, least=100, most=100)) == Moved(100, 100)
    assert two.used(ACCOUNT) == 100
    assert one.move(ACCOUNT, Move("a", 2, give=30)) == Moved(0, 70)
    assert two.used(ACCOUNT) == 70


def test_a_turn_that_is_asked_again_is_not_granted_again(opened: Open) -> None:
    store = opened()
    move = Move("a", 1, least=100, most=100)
    assert store.move(ACCOUNT, move) == store.move(ACCOUNT, move) == Moved(100, 100)
    back = Move("a", 2, give=100)
    assert store.move(ACCOUNT, back) == store.move(ACCOUNT, back) == Moved(0, 0)


def test_nobody_gives_back_what_they_do_not_hold(opened: Open) -> None:
    store = opened()
    store.move(ACCOUNT, Move("a", 1, least=100, most=100))
    assert store.move(ACCOUNT, Move("b", 1, give=100)) == Moved(0, 100)
    assert store.move(ACCOUNT, Move("a", 2, give=500)) == Moved(0, 0)


def test_a_grant_shrinks_near_the_end_and_is_nothing_when_too_little_is_left(opened: Open) -> None:
    store = opened()
    assert store.move(ACCOUNT, Move("a", 1, least=900, most=900)).granted == 900
    assert store.move(ACCOUNT, Move("a", 2, least=20, most=100)).granted == 40
    assert store.move(ACCOUNT, Move("a", 3, least=61, most=61)) == Moved(0, 940)
    assert store.move(ACCOUNT, Move("a", 4, most=500, beyond=True)) == Moved(500, 1440)
    assert store.move(ACCOUNT, Move("a", 5, least=1, most=1)).granted == 0


def test_dollars_by_the_hundred_thousand_are_counted_to_the_last_nano(opened: Open) -> None:
    store = opened()
    large = Account("big", 10**15, 4e9)
    assert store.move(large, Move("a", 1, least=10**15 - 3, most=10**15 - 3)).granted == 10**15 - 3
    assert store.move(large, Move("a", 2, give=123_456_789_012_345)).used == 876_543_210_987_652


steps = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(0, 400), st.integers(0, 400), st.integers(0, 400),
        st.booleans(),
    ),
    max_size=30,
)  # fmt: skip


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps)
def test_used_is_what_all_hold_and_never_above_the_limit(
    opened: Open, steps: list[tuple[str, int, int, int, bool]]
) -> None:
    """Against a model of ten lines, with every third reply lost and asked again."""
    store = opened()
    account = Account(f"acme:{uuid.uuid4()}", 1000, 4e9)
    held: dict[str, int] = {"a": 0, "b": 0, "c": 0}
    turns: dict[str, int] = {"a": 0, "b": 0, "c": 0}
    for lease, give, least, more, lost in steps:
        turns[lease] += 1
        move = Move(lease, turns[lease], give, least, least + more)
        if lost:
            store.move(account, move)
        moved = store.move(account, move)
        held[lease] += moved.granted - min(give, held[lease])
        assert moved.granted == 0 or least <= moved.granted <= least + more
        assert moved.used == sum(held.values()) <= 1000


def test_a_redis_that_is_away_is_a_fault_and_not_a_hang() -> None:
    store = RedisLeaseStore("redis://127.0.0.1:1/0")
    with pytest.raises(LeaseStoreFault, match=r"\[limits\]"):
        store.used(ACCOUNT)
    store.close()
