"""Purges told to every gateway, and what a gateway serves that cannot be told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache.store.base import StoreFault, Which
from cache.store.purge_feed import PurgeFeed
from cache.store.redis_line import RedisLine
from tests.support.recordings import FakeClock, key_number, recording_of
from tests.support.redis_server import RedisServer, running_redis
from tests.support.shared import PATIENT_S, Stack, stacks
from tests.support.speakers import eventually

pytestmark = pytest.mark.slow

KEY = key_number(1)
STREAM, EPOCH = "sluice:1:{purges}:stream", "sluice:1:{purges}:epoch"


@pytest.fixture
def server(redis7: RedisServer) -> RedisServer:
    redis7.client.flushall()
    return redis7


@pytest.fixture
async def pair(server: RedisServer) -> AsyncIterator[list[Stack]]:
    async with stacks(server, 2) as made:
        yield made


async def in_both(pair: list[Stack], **fields: object) -> None:
    """One entry that both gateways hold in memory."""
    one, two = pair
    await one.tiered.put(KEY, recording_of("a", **fields))  # type: ignore[arg-type]
    await one.tiered.flush()
    await eventually(lambda: two.tiered.get(KEY))
    await eventually(lambda: two.memory.look_up(KEY))


@pytest.mark.parametrize(
    "which",
    [
        Which(key=KEY),
        Which(tag="x"),
        Which(scope="tenant:default"),
        Which(model="demo"),
        Which(scope="tenant:default", tag="x"),
        Which(),
    ],
    ids=["key", "tag", "scope", "model", "scope and tag", "everything"],
)
async def test_what_one_gateway_purges_leaves_the_others_memory(
    pair: list[Stack], which: Which
) -> None:
    one, two = pair
    await in_both(pair, tags=("x",))
    await one.tiered.purge(which)
    await eventually(lambda: two.memory.look_up(KEY) is None)
    assert await two.tiered.get(KEY) is None


async def test_a_purge_leaves_what_it_does_not_name(pair: list[Stack]) -> None:
    one, two = pair
    await in_both(pair, tags=("x",))
    await one.tiered.put(key_number(2), recording_of("b", tags=("y",)))
    await one.tiered.flush()
    await two.tiered.get(key_number(2))
    await one.tiered.purge(Which(tag="y"))
    await eventually(lambda: two.memory.look_up(key_number(2)) is None)
    assert two.memory.look_up(KEY) is not None


async def test_a_gateway_that_cannot_hear_does_not_serve_from_memory(server: RedisServer) -> None:
    """Its clock, not a message, ends its trust: a cut line needs no working line to be noticed."""
    clock = FakeClock()
    line = RedisLine(server.url, patience_s=PATIENT_S)
    feed = PurgeFeed(line, clock=clock, trust_s=0.8)
    assert not feed.in_touch
    await line.open()
    await feed.open()
    assert feed.in_touch
    await line.close()
    clock.now += 0.79
    assert feed.in_touch
    clock.now += 0.02
    assert not feed.in_touch
    await feed.close()


async def test_memory_is_served_again_without_what_was_purged_meanwhile(
    pair: list[Stack], server: RedisServer
) -> None:
    one, two = pair
    await in_both(pair, tags=("x",))
    await one.tiered.put(key_number(2), recording_of("kept"))
    await one.tiered.flush()
    await two.tiered.get(key_number(2))
    real, two.feed._line = two.feed._line, _Deaf()  # type: ignore[assignment]
    await eventually(lambda: not two.feed.in_touch)
    await one.tiered.purge(Which(tag="x"))
    assert two.memory.look_up(KEY) is not None
    assert await two.tiered.get(KEY) is None
    two.feed._line = real
    await eventually(lambda: two.feed.in_touch)
    assert two.memory.look_up(KEY) is None
    assert two.memory.look_up(key_number(2)) is not None


class _Deaf:
    async def wait_for(self, *_commands: object, timeout_s: float) -> list[object]:
        raise StoreFault("no line")


async def test_who_cannot_know_what_it_missed_forgets_everything(
    pair: list[Stack], server: RedisServer
) -> None:
    one, two = pair
    await in_both(pair)
    await one.tiered.purge(Which(tag="first"))
    real, two.feed._line = two.feed._line, _Deaf()  # type: ignore[assignment]
    await eventually(lambda: not two.feed.in_touch)
    await one.tiered.purge(Which(tag="second"))
    server.client.xtrim(STREAM, maxlen=1, approximate=False)
    await one.tiered.purge(Which(tag="third"))
    server.client.xtrim(STREAM, maxlen=1, approximate=False)
    two.feed._line = real
    await eventually(lambda: two.feed.in_touch)
    assert two.memory.look_up(KEY) is None


async def test_flushing_redis_empties_every_memory(pair: list[Stack], server: RedisServer) -> None:
    one, two = pair
    await in_both(pair)
    server.client.flushall()
    await eventually(lambda: one.memory.look_up(KEY) is None and two.memory.look_up(KEY) is None)
    assert server.client.exists(EPOCH)


async def test_a_restart_without_its_data_empties_every_memory(tmp_path: Path) -> None:
    with running_redis(7, tmp_path) as server:
        async with stacks(server, 2) as pair:
            await in_both(pair)
            server.kill()
            await eventually(lambda: not pair[1].feed.in_touch)
            server.start()
            await eventually(lambda: pair[0].feed.in_touch and pair[1].feed.in_touch)
            assert pair[1].memory.look_up(KEY) is None
            await in_both(pair)


async def test_when_redis_is_full_a_purge_makes_everyone_forget_everything(
    pair: list[Stack], server: RedisServer
) -> None:
    one, two = pair
    await in_both(pair, tags=("x",))
    server.fill()
    try:
        await one.tiered.purge(Which(tag="x"))
        await eventually(lambda: two.memory.look_up(KEY) is None)
        assert two.feed.in_touch
        with pytest.raises(StoreFault, match="other gateways"):
            await one.tiered.purge(Which(tag="x"))
    finally:
        server.make_room()


async def test_a_message_that_cannot_be_read_may_have_meant_anything(
    pair: list[Stack], server: RedisServer
) -> None:
    _, two = pair
    await in_both(pair)
    server.client.xadd(STREAM, {"w": b"\xc1rubbish"})
    await eventually(lambda: two.memory.look_up(KEY) is None)


async def test_a_stream_of_another_type_keeps_memory_out_of_use(server: RedisServer) -> None:
    server.client.set(STREAM, "rubbish")
    async with stacks(server) as [stack]:
        await asyncio.sleep(0.05)
        assert not stack.feed.in_touch
        await stack.tiered.put(KEY, recording_of("a"))
        await stack.tiered.flush()
        assert await stack.tiered.get(KEY) is not None  # from Redis itself
        server.client.delete(STREAM)
        await eventually(lambda: stack.feed.in_touch)
