"""What a wait tells of a server, and what of the loop that waited: with real servers and stalls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cache.store.base import StoreFault, StoreLate
from cache.store.breaker import LIMIT
from cache.store.lag import Lag
from cache.store.redis_line import PATIENCE_S, RedisLine
from tests.support.redis_server import RedisServer
from tests.support.speakers import eventually
from tests.support.stalls import stalled


@asynccontextmanager
async def opened(
    server: RedisServer, events: list[str], **options: float
) -> AsyncIterator[RedisLine]:
    line = RedisLine(server.url, on_event=events.append, **options)  # type: ignore[arg-type]
    await line.open()
    try:
        yield line
    finally:
        await line.close()


async def test_a_free_loop_gives_the_server_all_of_the_wait() -> None:
    fair = []
    for _ in range(5):
        lag = Lag(0.2, time.monotonic)
        await asyncio.sleep(0.2)
        fair.append(lag.stop())
        assert lag.stop() == fair[-1]
    assert max(fair) > 0.15


@pytest.mark.parametrize("stall_s", [0.01, 0.3])
async def test_a_loop_that_is_held_up_takes_its_time_from_the_server(stall_s: float) -> None:
    lag = Lag(0.025, time.monotonic)
    async with stalled(stall_s):
        await asyncio.sleep(0.3)
    assert lag.stop() < 0.15


async def test_a_stalled_loop_is_never_taken_for_a_slow_redis(redis7: RedisServer) -> None:
    """Requests go on without it; the breaker, the faults and the log know nothing of it."""
    events: list[str] = []
    late = 0
    async with opened(redis7, events) as line:
        async with stalled(PATIENCE_S / 2):
            for _ in range(20):
                line.begin_request()
                try:
                    await line.ask(("GET", b"a"))
                    await line.ask(("GET", b"b"))
                except StoreLate:
                    late += 1
        assert late > 0
        assert (line.faults, line.late, line.breaker.times_opened) == (0, late, 0)
    assert events == []


async def test_a_stopped_redis_is_taken_for_one(redis7: RedisServer) -> None:
    events: list[str] = []
    async with opened(redis7, events, patience_s=0.2) as line:
        redis7.stop()
        try:
            for _ in range(1000):  # until then it may be late itself, on a busy machine
                with pytest.raises(StoreFault):
                    await line.ask(("GET", b"a"))
                if not line.breaker.closed:
                    break
        finally:
            redis7.resume()
        assert line.faults >= LIMIT
    assert "out of use" in events[0]


async def test_a_redis_that_answers_again_to_a_stalled_loop_is_taken_back_when_it_is_free(
    redis7: RedisServer,
) -> None:
    events: list[str] = []
    async with opened(redis7, events, patience_s=0.2) as line:
        for _ in range(LIMIT):
            line._book_failure("Redis was away.")
        async with stalled(0.1):
            await asyncio.sleep(4 * line.breaker.wait_s)
        await eventually(lambda: line.breaker.closed)
        await eventually(lambda: len(events) == 2)
    assert line.breaker.times_opened == 1
