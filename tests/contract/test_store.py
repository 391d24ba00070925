"""What every store promises (cache/store/base.py), held against each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cache.key import family_of
from cache.replay import pack_body
from cache.store.base import Store, Which
from cache.store.memory import MemoryStore
from cache.store.purge_feed import PurgeFeed
from cache.store.redis import RedisStore
from cache.store.redis_line import RedisLine
from cache.store.sqlite import SqliteStore
from cache.store.tiered import TieredStore
from engine.contract import Delta, Finish, TokenLogprob
from tests.support.recordings import FakeClock, key_number, recording_of
from tests.support.redis_server import VERSIONS, RedisServer

Maker = Callable[[int, FakeClock, Path], Store]
ROOM = 1 << 20


def make_memory(max_bytes: int, clock: FakeClock, _: Path) -> Store:
    return MemoryStore(max_bytes, clock=clock)


def make_sqlite(max_bytes: int, clock: FakeClock, folder: Path) -> Store:
    return SqliteStore(folder / "cache.db", max_bytes, clock=clock, read_timeout_s=5.0)


def make_tiered(max_bytes: int, clock: FakeClock, folder: Path) -> Store:
    """Memory so small that most is found below."""
    return TieredStore(
        MemoryStore(min(max_bytes, 3000), clock=clock), make_sqlite(max_bytes, clock, folder)
    )


def make_redis(server: RedisServer, max_bytes: int, clock: FakeClock, _: Path) -> Store:
    """An empty Redis; patience enough for a machine that is busy with other things."""
    server.client.flushall()
    line = RedisLine(server.url, patience_s=5.0)
    return RedisStore(line, PurgeFeed(line, trust_s=30.0), max_bytes, clock=clock)


def make_shared(server: RedisServer, max_bytes: int, clock: FakeClock, _: Path) -> Store:
    """What gateways with a Redis have: memory in front of it, and the feed between them."""
    server.client.flushall()
    line = RedisLine(server.url, patience_s=5.0)
    feed = PurgeFeed(line, trust_s=30.0)
    memory = MemoryStore(min(max_bytes, 3000), clock=clock)
    return TieredStore(memory, RedisStore(line, feed, max_bytes, clock=clock), feed)


MAKERS: dict[str, Maker] = {"memory": make_memory, "sqlite": make_sqlite, "tiered": make_tiered}
REDIS_MAKERS = {"redis": make_redis, "shared": make_shared}
CASES = [*MAKERS, *(f"{name}{version}" for name in REDIS_MAKERS for version in VERSIONS)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=CASES)
def maker(request: pytest.FixtureRequest) -> Maker:
    if request.param in MAKERS:
        return MAKERS[request.param]
    name, version = request.param[:-1], request.param[-1]
    return partial(REDIS_MAKERS[name], request.getfixturevalue(f"redis{version}"))


@pytest.fixture
async def store(maker: Maker, clock: FakeClock, tmp_path: Path) -> AsyncIterator[Store]:
    opened = maker(ROOM, clock, tmp_path)
    await opened.open()
    yield opened
    await opened.close()


async def test_what_was_not_put_is_not_there(store: Store) -> None:
    assert await store.get(key_number(1)) is None


async def test_what_was_put_is_found_at_once_and_after_a_flush(store: Store) -> None:
    recording = recording_of("Par", "is", tags=("a", "b"))
    await store.put(key_number(1), recording)
    assert await store.get(key_number(1)) == recording
    await store.flush()
    found = await store.get(key_number(1))
    assert found == recording
    assert found is not None
    assert found.events() == recording.events()
    assert await store.get(key_number(2)) is None


async def test_each_key_has_its_own_entry(store: Store) -> None:
    for number in range(50):
        await store.put(key_number(number), recording_of(str(number)))
    await store.flush()
    for number in range(50):
        assert await store.get(key_number(number)) == recording_of(str(number))


async def test_keys_that_begin_alike_are_not_confused(store: Store) -> None:
    family = family_of("tenant:default")
    one, other = b"12345678" + bytes(16) + family, b"12345678" + bytes(15) + b"\1" + family
    await store.put(one, recording_of("one"))
    await store.flush()
    assert await store.get(other) is None
    await store.put(other, recording_of("other"))
    await store.purge(Which(key=other))
    assert await store.get(one) == recording_of("one")


async def test_the_latest_put_counts(store: Store) -> None:
    await store.put(key_number(1), recording_of("old"))
    await store.flush()
    await store.put(key_number(1), recording_of("new"))
    assert await store.get(key_number(1)) == recording_of("new")
    await store.flush()
    assert await store.get(key_number(1)) == recording_of("new")
    assert (await store.stats()).entries == 1


async def test_an_entry_is_gone_when_its_time_is_up(store: Store, clock: FakeClock) -> None:
    await store.put(key_number(1), recording_of("short", stored_at=1000.0, ttl_s=10.0))
    await store.put(key_number(2), recording_of("long", stored_at=1000.0, ttl_s=1000.0))
    await store.flush()
    clock.now = 1009.9
    assert await store.get(key_number(1)) is not None
    clock.now = 1010.0
    assert await store.get(key_number(1)) is None
    assert await store.get(key_number(2)) is not None


async def test_a_logprob_comes_back_to_the_last_bit(store: Store) -> None:
    top = (TokenLogprob("é", b"\xc3\xa9", -0.1), TokenLogprob("�", b"\xff", -7.000000000000001))
    chosen = TokenLogprob("é", b"\xc3\xa9", -0.1, top)
    events = [Delta(0, "text", "é", (1, 2), (chosen,)), Finish(0, "length")]
    await store.put(key_number(1), replace(recording_of(), body=pack_body(events)))
    await store.flush()
    found = await store.get(key_number(1))
    assert found is not None
    assert found.events() == tuple(events)


@pytest.mark.parametrize("flushed", [False, True])
async def test_a_purge_by_scope_forgets_that_scope_only(store: Store, flushed: bool) -> None:
    one, two = key_number(1, "one"), key_number(2, "two")
    await store.put(one, recording_of("a", scope="one"))
    await store.put(two, recording_of("b", scope="two"))
    if flushed:
        await store.flush()
    await store.purge(Which(scope="one"))
    assert await store.get(one) is None
    assert await store.get(two) == recording_of("b", scope="two")
    await store.flush()
    assert await store.get(one) is None


async def test_a_purge_can_name_model_tag_or_key(store: Store) -> None:
    await store.put(key_number(1), recording_of("a", model="m1", tags=("x", "y")))
    await store.put(key_number(2), recording_of("b", model="m2", tags=("y",)))
    await store.put(key_number(3), recording_of("c", model="m2"))
    await store.flush()
    assert await store.purge(Which(tag="x")) == 1
    assert await store.get(key_number(1)) is None
    assert await store.purge(Which(tag="y", model="m1")) == 0
    assert await store.purge(Which(key=key_number(3))) == 1
    assert await store.get(key_number(2)) is not None
    assert await store.purge(Which(model="m2")) == 1
    assert (await store.stats()).entries == 0


async def test_a_purge_that_names_nothing_forgets_everything(store: Store) -> None:
    keys = [key_number(number, f"s{number}") for number in range(20)]
    for number, key in enumerate(keys):
        await store.put(key, recording_of("a", scope=f"s{number}"))
    await store.flush()
    await store.purge(Which())
    assert (await store.stats()).entries == 0
    assert [await store.get(key) for key in keys] == [None] * 20


async def test_a_tag_that_looks_like_sql_is_a_tag(store: Store) -> None:
    tag = "x'); DROP TABLE entries; --"
    await store.put(key_number(1), recording_of("a", tags=(tag,)))
    await store.put(key_number(2, tag), recording_of("b", scope=tag))
    await store.flush()
    assert await store.purge(Which(tag=tag)) == 1
    assert await store.get(key_number(2, tag)) is not None


async def test_bytes_stay_within_their_bound(
    maker: Maker, clock: FakeClock, tmp_path: Path
) -> None:
    store = maker(40_000, clock, tmp_path)
    await store.open()
    for number in range(200):
        await store.put(key_number(number), recording_of("word " * 200))
        if number % 10 == 0:
            await store.flush()
            assert (await store.stats()).held_bytes <= 40_000
    await store.flush()
    stats = await store.stats()
    assert 5_000 < stats.held_bytes <= 40_000
    assert stats.evicted > 100
    await store.close()


async def test_an_entry_larger_than_the_store_is_dropped_and_leaves_the_rest(
    maker: Maker, clock: FakeClock, tmp_path: Path
) -> None:
    store = maker(20_000, clock, tmp_path)
    await store.open()
    await store.put(key_number(1), recording_of("small"))
    await store.put(key_number(2), recording_of("x" * 30_000))
    await store.flush()
    assert await store.get(key_number(2)) is None
    assert await store.get(key_number(1)) == recording_of("small")
    assert (await store.stats()).dropped == 1
    await store.close()


async def test_what_costs_more_for_its_bytes_stays_longer(
    maker: Maker, clock: FakeClock, tmp_path: Path
) -> None:
    store = maker(60_000, clock, tmp_path)
    await store.open()
    await store.put(key_number(0), recording_of("summary", prompt_tokens=30_000))
    for number in range(1, 200):
        await store.put(key_number(number), recording_of("word " * 100))
    await store.flush()
    assert await store.get(key_number(0)) is not None
    await store.close()


async def test_hits_and_misses_are_counted(store: Store) -> None:
    await store.put(key_number(1), recording_of("a"))
    await store.get(key_number(1))
    await store.get(key_number(1))
    await store.get(key_number(2))
    stats = await store.stats()
    assert (stats.hits, stats.misses) == (2, 1)


async def test_closing_twice_does_nothing(store: Store) -> None:
    await store.close()
    await store.close()
