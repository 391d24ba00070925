"""Recordings in a Redis: what the contract does not say (tests/contract/test_store.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cache.key import key_of
from cache.replay import encode
from cache.store.base import StoreFault, Which
from cache.store.redis_client import CLUSTER
from cache.store.redis_index import INDICES, ROW_BYTES, Family, member_of, pack_entry
from tests.support.recordings import call_of, key_number, recording_of
from tests.support.redis_server import RedisServer, running_redis
from tests.support.shared import Stack, stack_of, stacks
from tests.support.speakers import eventually

pytestmark = pytest.mark.slow

KEY = key_number(1)
ENTRY = Family.of(KEY).entries + member_of(KEY)


@pytest.fixture
def server(redis7: RedisServer) -> RedisServer:
    redis7.client.flushall()
    return redis7


@pytest.fixture
async def stack(server: RedisServer) -> AsyncIterator[Stack]:
    async with stacks(server) as [made]:
        yield made


@pytest.fixture
async def pair(server: RedisServer) -> AsyncIterator[list[Stack]]:
    async with stacks(server, 2) as made:
        yield made


# ---------------------------------------------------------------------- between gateways


async def test_what_one_gateway_stores_another_finds(pair: list[Stack]) -> None:
    one, two = pair
    await one.redis.put(KEY, recording_of("Par", "is", tags=("a",)))
    await one.redis.flush()
    assert await two.redis.get(KEY) == recording_of("Par", "is", tags=("a",))


async def test_a_purge_forgets_what_another_gateway_has_not_written_yet(pair: list[Stack]) -> None:
    """The writer of `one` is held up between taking its batch and Redis."""
    one, two = pair
    async with one.redis._writing:
        await one.redis.put(KEY, recording_of("a", tags=("x",)))
        await asyncio.sleep(0.05)
        purging = asyncio.create_task(two.tiered.purge(Which(tag="x")))
        await purging
        await eventually(lambda: not one.redis._pending)
    await one.redis.flush()
    assert await two.redis.get(KEY) is None


async def test_what_was_written_while_a_purge_passed_is_purged_too(
    pair: list[Stack], server: RedisServer
) -> None:
    """It arrives after the purge has walked the index and before its gateway hears of it."""
    one, two = pair
    publish, two_may_publish = two.feed.publish, asyncio.Event()

    async def wait(which: Which) -> None:
        await two_may_publish.wait()
        await publish(which)

    two.feed.publish = wait  # type: ignore[method-assign]
    purging = asyncio.create_task(two.tiered.purge(Which(tag="x")))
    await asyncio.sleep(0.05)
    await one.tiered.put(KEY, recording_of("a", tags=("x",)))
    await one.tiered.flush()
    assert await one.tiered.get(KEY) is not None
    two_may_publish.set()
    await purging
    await eventually(lambda: one.memory.look_up(KEY) is None)
    await eventually(lambda: not server.client.exists(ENTRY))


# ---------------------------------------------------------------------- layout


async def test_an_entry_lives_as_long_as_its_answer_may_be_given(
    stack: Stack, server: RedisServer
) -> None:
    await stack.redis.put(KEY, recording_of("a", stored_at=1000.0, ttl_s=60.0))
    await stack.redis.flush()
    assert 50_000 < server.client.pttl(ENTRY) <= 60_000


async def test_every_key_has_a_time_to_live_and_the_familys_tag(
    stack: Stack, server: RedisServer
) -> None:
    await stack.redis.put(KEY, recording_of("a", ttl_s=60.0))
    await stack.redis.put(key_number(2), recording_of("b", ttl_s=600.0))
    await stack.redis.flush()
    keys = [key for key in server.client.keys("*") if b"{purges}" not in key]
    assert len(keys) == 4
    assert all(key.startswith(Family.of(KEY).prefix) for key in keys)
    assert all(server.client.pttl(key) > 0 for key in keys)
    assert server.client.pttl(Family.of(KEY).index) > 60_000


async def test_an_entry_occupies_no_more_than_is_counted(stack: Stack, server: RedisServer) -> None:
    body = "word " * 200
    before = server.client.info("memory")["used_memory"]
    for number in range(500):
        await stack.redis.put(key_number(number), recording_of(body, tags=("tag",)))
    await stack.redis.flush()
    grown = server.client.info("memory")["used_memory"] - before
    stats = await stack.redis.stats()
    assert stats.entries == 500
    assert 0.7 * grown < stats.held_bytes < 1.3 * grown
    assert stats.held_bytes > 500 * ROW_BYTES


async def test_one_scope_fills_its_own_room_and_nobody_elses(server: RedisServer) -> None:
    async with stacks(server, scope_bytes=20_000) as [stack]:
        quiet = key_number(1, "tenant:quiet")
        await stack.redis.put(quiet, recording_of("kept", scope="tenant:quiet"))
        for number in range(300):
            key = key_number(number, "tenant:loud")
            await stack.redis.put(key, recording_of("word " * 100, scope="tenant:loud"))
        await stack.redis.flush()
        assert await stack.redis.get(quiet) is not None
        stats = await stack.redis.stats()
        assert stats.evicted > 200
        assert stats.held_bytes <= 20_000 + 1_000


async def test_what_is_used_outlives_what_is_not(server: RedisServer) -> None:
    async with stacks(server, scope_bytes=20_000) as [stack]:
        for number in range(60):
            await stack.redis.put(key_number(number), recording_of("word " * 100))
            await stack.redis.flush()
            await stack.redis.get(KEY if number else key_number(0))
            await stack.redis.flush()
        assert await stack.redis.get(KEY) is not None
        assert await stack.redis.get(key_number(2)) is None


# ---------------------------------------------------------------------- what Redis may hold


@pytest.mark.parametrize("length", [0, 5, 31, 32, 40, 200])
async def test_rubbish_is_a_miss(stack: Stack, server: RedisServer, length: int) -> None:
    await stack.redis.put(KEY, recording_of("a"))
    await stack.redis.flush()
    server.client.set(ENTRY, bytes(range(256))[:length])
    assert await stack.redis.get(KEY) is None


async def test_a_flipped_bit_is_a_miss(stack: Stack, server: RedisServer) -> None:
    await stack.redis.put(KEY, recording_of("a"))
    await stack.redis.flush()
    written = server.client.get(ENTRY)
    for at in range(0, len(written), 7):
        changed = bytearray(written)
        changed[at] ^= 0x10
        server.client.set(ENTRY, bytes(changed))
        assert await stack.redis.get(KEY) is None
    server.client.set(ENTRY, written)
    assert await stack.redis.get(KEY) == recording_of("a")


async def test_another_tenants_entry_under_this_key_is_a_miss(
    stack: Stack, server: RedisServer
) -> None:
    mine, theirs = key_number(1, "tenant:mine"), key_number(1, "tenant:theirs")
    secret = recording_of("secret", scope="tenant:theirs")
    await stack.redis.put(mine, recording_of("mine", scope="tenant:mine"))
    await stack.redis.flush()
    server.client.set(Family.of(mine).entries + member_of(mine), pack_entry(theirs, secret))
    assert await stack.redis.get(mine) is None


async def test_an_entry_that_the_index_does_not_name_is_dead(
    stack: Stack, server: RedisServer
) -> None:
    """Else what Redis evicts of an index could not be purged any more."""
    await stack.redis.put(KEY, recording_of("a"))
    await stack.redis.flush()
    server.client.delete(Family.of(KEY).index)
    assert server.client.exists(ENTRY)
    assert await stack.redis.get(KEY) is None


@pytest.mark.parametrize("part", ["index", "order"])
@pytest.mark.parametrize("damage", ["lost", "of another type"])
async def test_a_damaged_index_is_begun_anew(
    stack: Stack, server: RedisServer, part: str, damage: str
) -> None:
    for number in range(3):
        await stack.redis.put(key_number(number), recording_of("old"))
    await stack.redis.flush()
    name = getattr(Family.of(KEY), part)
    server.client.delete(name)
    if damage == "of another type":
        server.client.rpush(name, "rubbish")
    await stack.redis.get(KEY)
    await stack.redis.put(KEY, recording_of("new"))
    await stack.redis.flush()
    assert await stack.redis.get(KEY) == recording_of("new")
    assert await stack.redis.purge(Which(scope="tenant:default")) == 1
    assert await stack.redis.get(KEY) is None


async def test_an_entry_of_another_type_is_a_miss(stack: Stack, server: RedisServer) -> None:
    await stack.redis.put(KEY, recording_of("a"))
    await stack.redis.flush()
    server.client.delete(ENTRY)
    server.client.rpush(ENTRY, "a", "list")
    assert await stack.redis.get(KEY) is None
    assert stack.line.breaker.closed


async def test_keys_of_others_are_left_alone(stack: Stack, server: RedisServer) -> None:
    server.client.hset("sluice:1:{not hex}:i", "a", "b")
    server.client.hset("other:{00}:i", "a", "b")
    server.client.set("theirs", "kept")
    await stack.redis.put(KEY, recording_of("a"))
    await stack.redis.flush()
    assert await stack.redis.purge(Which()) == 1
    assert server.client.get("theirs") == b"kept"
    assert server.client.exists("sluice:1:{not hex}:i", "other:{00}:i") == 2


# ---------------------------------------------------------------------- full, gone, late


async def test_a_full_redis_takes_no_entries_and_still_gives_and_purges(
    stack: Stack, server: RedisServer
) -> None:
    await stack.redis.put(KEY, recording_of("a", tags=("x",)))
    await stack.redis.flush()
    server.fill()
    try:
        await stack.redis.put(key_number(2), recording_of("b"))
        await stack.redis.flush()
        assert (await stack.redis.stats()).dropped == 1
        assert await stack.redis.get(KEY) is not None
        assert await stack.redis.purge(Which(tag="x")) == 1
        assert await stack.redis.get(KEY) is None
    finally:
        server.make_room()
    await stack.redis.put(key_number(3), recording_of("c"))
    await stack.redis.flush()
    assert await stack.redis.get(key_number(3)) is not None


async def test_the_queue_is_bounded_and_what_it_cannot_take_is_dropped(
    server: RedisServer,
) -> None:
    stack = stack_of(server)
    stack.redis._queue_bytes = 20_000
    await stack.tiered.open()
    async with stack.redis._writing:
        for number in range(50):
            await stack.redis.put(key_number(number), recording_of("x" * 1_000))
        assert stack.redis._pending_bytes <= 20_000
    await stack.redis.flush()
    assert 30 < (await stack.redis.stats()).dropped < 50
    await stack.tiered.close()


async def test_an_answer_too_large_to_be_read_in_time_is_not_written(stack: Stack) -> None:
    await stack.redis.put(KEY, recording_of("x" * (2 << 20)))
    await stack.redis.flush()
    assert (await stack.redis.stats()).dropped == 1


async def test_a_purge_that_cannot_reach_redis_says_so(server: RedisServer) -> None:
    stack = stack_of(server)  # its line was never opened
    with pytest.raises(StoreFault):
        await stack.redis.purge(Which(scope="tenant:default"))


async def test_what_is_put_while_nobody_answers_is_dropped_at_once(server: RedisServer) -> None:
    stack = stack_of(server)
    for _ in range(10):
        stack.line.breaker.failure()
    await stack.redis.put(KEY, recording_of("a"))
    assert not stack.redis._pending


# ---------------------------------------------------------------------- a cluster


async def test_a_redis_cluster_keeps_purges_and_finds(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One node with all slots: it refuses what spans several, as a cluster of many would."""
    folder = tmp_path_factory.mktemp("cluster")
    with running_redis(7, folder, "--cluster-enabled", "yes") as server:
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await eventually(lambda: b"cluster_state:ok" in _cluster_info(server))
        server.url = server.url.replace("redis:", f"redis{CLUSTER}:").removesuffix("/0")
        async with stacks(server, 2) as (one, two):
            keys = [key_number(number, f"s{number}") for number in range(30)]
            for number, key in enumerate(keys):
                tags = ("odd",) if number % 2 else ()
                await one.tiered.put(key, recording_of(str(number), scope=f"s{number}", tags=tags))
            await one.tiered.flush()
            assert [await two.redis.get(key) for key in keys].count(None) == 0
            assert await two.tiered.purge(Which(tag="odd")) == 15
            assert await two.tiered.purge(Which(scope="s0")) == 1
            purged = (keys[0], keys[1])
            await eventually(lambda: all(one.memory.look_up(key) is None for key in purged))
            assert [await one.tiered.get(key) for key in keys].count(None) == 16
            assert (await one.tiered.stats()).entries == 14


def _cluster_info(server: RedisServer) -> bytes:
    info = server.client.execute_command("CLUSTER INFO")
    return info if isinstance(info, bytes) else str(info).encode().replace(b"': '", b":")


def test_the_family_of_a_call_is_where_its_entry_lies() -> None:
    key = key_of(call_of(scope="tenant:a"))
    recording = recording_of("a", scope="tenant:a")
    assert pack_entry(key, recording) == key + encode(recording)
    assert Family.of_index(Family.of(key).index) == Family.of(key)
    assert Family.of_index(INDICES) is None
