"""What a gateway with a Redis has between its layers and the server, for tests of the parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cache.store.base import Clock
from cache.store.memory import MemoryStore
from cache.store.purge_feed import TRUST_S, PurgeFeed
from cache.store.redis import RedisStore
from cache.store.redis_line import RedisLine
from cache.store.tiered import TieredStore
from tests.support.recordings import FakeClock
from tests.support.redis_server import RedisServer

ROOM = 1 << 20
PATIENT_S = 5.0
"""For a machine that is busy with other things; no test waits for it to run out."""


@dataclass(frozen=True, slots=True)
class Stack:
    line: RedisLine
    feed: PurgeFeed
    memory: MemoryStore
    redis: RedisStore
    tiered: TieredStore


def stack_of(
    server: RedisServer,
    *,
    scope_bytes: int = ROOM,
    patience_s: float = PATIENT_S,
    trust_s: float = TRUST_S,
    clock: Clock | None = None,
) -> Stack:
    clock = clock or FakeClock()
    line = RedisLine(server.url, patience_s=patience_s)
    feed = PurgeFeed(line, trust_s=trust_s)
    memory = MemoryStore(ROOM, clock=clock)
    redis = RedisStore(line, feed, scope_bytes, clock=clock)
    return Stack(line, feed, memory, redis, TieredStore(memory, redis, feed))


@asynccontextmanager
async def stacks(
    server: RedisServer, count: int = 1, **options: float
) -> AsyncIterator[list[Stack]]:
    made = [stack_of(server, **options) for _ in range(count)]  # type: ignore[arg-type]
    for stack in made:
        await stack.tiered.open()
    try:
        yield made
    finally:
        for stack in made:
            await stack.tiered.close()
