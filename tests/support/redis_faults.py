"""What may become of a Redis, and requests that go on meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tests.support.redis_server import RedisServer
from tests.support.serving import Running
from tests.support.speakers import eventually
from tests.support.twins import ALICE, BOB, ask, text_of

WORKERS: Final = 8
TENANTS: Final = {ALICE: "tenant:alice", BOB: "tenant:bob"}

Fault: TypeAlias = Callable[[RedisServer], Iterator[None]]
"""Begins until its `yield`, ends after it."""


@dataclass
class Load:
    """Requests that go on until they are told to stop, each checked for whose answer it got."""

    gateways: list[Running]
    question: Callable[[random.Random, int], str]
    """(rng, number of answers so far) -> what to ask."""
    fits: Callable[[str, str, str], bool]
    """(scope, question, answer) -> whether it is this tenant's answer to this question."""
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    origins: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stopping: bool = False

    @property
    def answered(self) -> int:
        return self.origins.total()

    async def run(self, during: Callable[[], Awaitable[None]]) -> None:
        workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        try:
            await self.go_on(50)
            await during()
        finally:
            self.stopping = True
            await asyncio.gather(*workers)

    async def go_on(self, requests: int) -> None:
        """Until so many more requests have been answered."""
        goal = self.answered + requests
        await eventually(lambda: self.answered >= goal or bool(self.wrong))

    async def _work(self) -> None:
        while not self.stopping and not self.wrong:
            key = self.rng.choice(list(TENANTS))
            text = self.question(self.rng, self.answered)
            reply = await ask(self.rng.choice(self.gateways), text, key)
            if reply.status_code != 200:
                self.wrong.append(f"{reply.status_code}: {reply.text}")
                return
            if not self.fits(TENANTS[key], text, text_of(reply)):
                self.wrong.append(f"{TENANTS[key]}: {text!r} was answered {text_of(reply)!r}")
                return
            self.origins[reply.headers["sluice-origin"]] += 1


def kill_and_restart(server: RedisServer) -> Iterator[None]:
    server.kill()
    yield
    server.start()


def stop_and_go_on(server: RedisServer) -> Iterator[None]:
    server.stop()
    yield
    server.resume()


def fill_and_make_room(server: RedisServer) -> Iterator[None]:
    server.fill()
    yield
    server.make_room()


def flush_again_and_again(server: RedisServer) -> Iterator[None]:
    server.client.flushall()
    yield
    server.client.flushall()


def restart_at_once(server: RedisServer) -> Iterator[None]:
    server.kill()
    server.start()
    yield
    server.kill()
    server.start()


def fill_with_rubbish(server: RedisServer) -> Iterator[None]:
    """Each key holds what does not belong there: bytes, then another type."""
    for key in server.client.keys("sluice:1:*"):
        server.client.set(key, b"\x93rubbish", px=60_000)
    yield
    for key in server.client.keys("sluice:1:*"):
        # As one: the load goes on, and may store anew in between.
        server.client.pipeline(transaction=True).delete(key).rpush(key, "rubbish").execute()
    server.client.flushall()


def swap_entries(server: RedisServer) -> Iterator[None]:
    """Every entry lies under the key of another one, those of other tenants included."""
    keys = list(server.client.keys("sluice:1:*:e:*"))
    values = [server.client.get(key) for key in keys]
    for key, value in zip(keys, values[1:] + values[:1], strict=True):
        if value is not None:
            server.client.set(key, value, px=60_000)
    yield
    server.client.flushall()


FAULTS = [
    kill_and_restart,
    stop_and_go_on,
    fill_and_make_room,
    flush_again_and_again,
    restart_at_once,
    fill_with_rubbish,
    swap_entries,
]


async def under_load(load: Load, fault: Fault, server: RedisServer) -> None:
    """The fault comes while requests are answered, lasts for some hundred, and ends."""

    async def during() -> None:
        course = fault(server)
        await asyncio.to_thread(next, course)
        await load.go_on(300)
        await asyncio.to_thread(next, course, None)
        await load.go_on(100)

    await load.run(during)
