"""What a Redis promises of slots that gateways hold together."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gateway.tenants.lease_store_redis import SLOTS, RedisLeaseStore
from tests.support.redis_server import RedisServer
from tests.support.shared import PATIENT_S


@pytest.fixture(params=["redis7", "redis8"])
def server(request: pytest.FixtureRequest) -> RedisServer:
    server: RedisServer = request.getfixturevalue(request.param)
    server.client.flushall()
    return server


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisLeaseStore]:
    store = RedisLeaseStore(server.url, PATIENT_S)
    yield store
    store.close()


def hold(store: RedisLeaseStore, holder: str, wanted: int, least: int = 0) -> int:
    return store.hold("acme", holder, least=least, wanted=wanted, limit=10)


def test_what_one_holds_is_not_anothers(store: RedisLeaseStore) -> None:
    assert hold(store, "a", 7) == 7
    assert hold(store, "b", 7) == 3
    assert hold(store, "a", 2) == 2
    assert hold(store, "b", 9) == 8
    assert store.hold("other", "b", least=0, wanted=9, limit=10) == 9


def test_what_is_in_use_is_held_even_where_a_limit_was_lowered(store: RedisLeaseStore) -> None:
    hold(store, "a", 10)
    assert hold(store, "b", 1, least=1) == 1
    assert hold(store, "a", 10, least=4) == 9


def test_who_holds_nothing_is_forgotten(store: RedisLeaseStore, server: RedisServer) -> None:
    hold(store, "a", 3)
    assert hold(store, "a", 0) == 0
    assert not server.client.exists(f"{SLOTS}acme")


def test_slots_that_nobody_speaks_for_are_free_again(
    store: RedisLeaseStore, server: RedisServer
) -> None:
    hold(store, "dead", 9)
    assert hold(store, "b", 5) == 1
    seconds, _ = server.client.time()
    server.client.hset(f"{SLOTS}acme", "dead", f"9 {(seconds - 1) * 1000}")
    assert hold(store, "b", 5) == 5
    assert set(server.client.hkeys(f"{SLOTS}acme")) == {b"b"}


def test_many_at_once_never_hold_more_than_there_are(server: RedisServer) -> None:
    held: dict[int, int] = {}

    def grab(holder: int) -> None:
        store = RedisLeaseStore(server.url, PATIENT_S)
        for wanted in (3, 1, 4, 2):
            held[holder] = hold(store, str(holder), wanted)
        store.close()

    threads = [threading.Thread(target=grab, args=(one,)) for one in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < sum(held.values()) <= 10
