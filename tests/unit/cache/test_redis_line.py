"""How long a request waits for Redis, and what becomes of its faults.

The client is a fake: it answers, refuses, breaks or hangs as it is told. The clock is a fake as
well where time is counted; where a wait has to end by itself it is bounded generously.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from cache.store.base import StoreAway, StoreFault
from cache.store.breaker import Breaker
from cache.store.redis_client import STRAGGLER_S, Command, is_refusal
from cache.store.redis_line import WORK_S, RedisLine, WithPatience
from engine.contract import Answer, Call, Trail
from tests.support.recordings import FakeClock, Inner, call_of, hear
from tests.support.redis_server import RedisServer
from tests.support.speakers import eventually

GENEROUS_S = 60.0


class FakeClient:
    """`answer` makes the reply to a command: it may raise, or return a Future that never ends."""

    def __init__(self) -> None:
        self.answer: Callable[[Command], Any] = lambda command: b"reply to " + str(command).encode()
        self.batches: list[list[Command]] = []
        self.closed = False
        self.response_callbacks: dict[str, Any] = {}

    @property
    def connection_pool(self) -> FakeClient:
        return self

    async def get_connection(self) -> FakeConnection:
        return FakeConnection(self)

    async def release(self, connection: FakeConnection) -> None:
        """A connection whose replies were not all read must not be given to anybody else."""
        assert connection.is_cut or not connection.unread

    async def aclose(self) -> None:
        self.closed = True


class FakeConnection:
    def __init__(self, client: FakeClient) -> None:
        self._client = client
        self.unread: list[Command] = []
        self.is_cut = False

    def pack_commands(self, commands: tuple[Command, ...]) -> list[Command]:
        return list(commands)

    async def send_packed_command(self, packed: list[Command], check_health: bool) -> None:
        assert not check_health
        self._client.batches.append(packed)
        self.unread = packed.copy()

    async def read_response(self) -> Any:
        reply = self._client.answer(self.unread[0])
        reply = await reply if isinstance(reply, asyncio.Future) else reply
        del self.unread[0]
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def disconnect(self, nowait: bool) -> None:
        assert nowait
        self.is_cut = True


class House:
    def __init__(self, **options: Any) -> None:
        self.clients: list[FakeClient] = []
        self.events: list[str] = []
        self.line = RedisLine(
            "redis://nowhere", connect=self._connect, on_event=self.events.append, **options
        )

    def _connect(self, _url: str, _connections: int) -> Any:
        self.clients.append(FakeClient())
        return self.clients[-1]

    @property
    def client(self) -> FakeClient:
        return self.clients[0]

    def hang(self) -> None:
        self.client.answer = lambda _: asyncio.get_running_loop().create_future()

    def break_off(self) -> None:
        def fail(_: Command) -> None:
            raise RedisConnectionError("connection refused")

        self.client.answer = fail

    def mend(self) -> None:
        self.client.answer = lambda _: b"OK"


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House(patience_s=0.02, breaker=Breaker(time.monotonic, limit=3, cool_down_s=0.05))
    await made.line.open()
    yield made
    await made.line.close()


async def test_commands_go_out_together_and_replies_come_in_order(house: House) -> None:
    house.client.answer = lambda command: command[1]
    assert await house.line.ask(("GET", b"a"), ("GET", b"b")) == [b"a", b"b"]
    assert house.client.batches[-1] == [("GET", b"a"), ("GET", b"b")]


async def test_a_refusal_is_a_reply_and_no_failure(house: House) -> None:
    house.client.answer = lambda _: ResponseError("OOM command not allowed")
    for _ in range(10):
        [reply] = await house.line.ask(("SET", b"a", b"b"))
        assert is_refusal(reply)
    assert house.line.breaker.closed
    assert house.line.faults == 0


@pytest.mark.parametrize(
    "error", [RedisConnectionError("gone"), OSError("gone"), EOFError(), IndexError("library")]
)
async def test_whatever_the_client_raises_is_a_store_fault(house: House, error: Exception) -> None:
    def fail(_: Command) -> None:
        raise error

    house.client.answer = fail
    with pytest.raises(StoreFault):
        await house.line.ask(("GET", b"a"))
    with pytest.raises(StoreFault):
        await house.line.work(("GET", b"a"))


async def test_who_waits_for_an_answer_that_never_comes_gives_up(house: House) -> None:
    house.hang()
    async with asyncio.timeout(GENEROUS_S):
        with pytest.raises(StoreFault, match="20 ms"):
            await house.line.ask(("GET", b"a"))


async def test_what_nobody_waits_for_has_no_less_time_than_a_request() -> None:
    house = House(patience_s=GENEROUS_S)
    await house.line.open()

    def answer_late(_: Command) -> asyncio.Future[bytes]:
        loop = asyncio.get_running_loop()
        late: asyncio.Future[bytes] = loop.create_future()
        loop.call_later(1.2 * max(WORK_S, STRAGGLER_S), late.set_result, b"OK")
        return late

    house.client.answer = answer_late
    asked = house.line.ask(("GET", b"a")), house.line.work(("SET", b"a", b"b"))
    assert await asyncio.gather(*asked) == [[b"OK"], [b"OK"]]
    await house.line.close()


async def test_all_calls_of_a_request_spend_from_one_purse() -> None:
    clock = FakeClock()
    house = House(patience_s=0.025, clock=clock, breaker=Breaker(clock))
    await house.line.open()

    def take_ten_ms(_: Command) -> bytes:
        clock.now += 0.010
        return b"OK"

    house.client.answer = take_ten_ms
    house.line.begin_request()
    for _ in range(3):
        await house.line.ask(("GET", b"a"))
    asked = len(house.client.batches)
    with pytest.raises(StoreFault, match="no time left"):
        await house.line.ask(("GET", b"a"))
    assert len(house.client.batches) == asked
    house.line.begin_request()
    await house.line.ask(("GET", b"a"))
    await house.line.close()


async def test_tasks_that_work_for_a_request_spend_from_its_purse() -> None:
    clock = FakeClock()
    house = House(patience_s=0.025, clock=clock, breaker=Breaker(clock))
    await house.line.open()

    def take_all(_: Command) -> bytes:
        clock.now += 0.026
        return b"OK"

    house.client.answer = take_all
    house.line.begin_request()
    await asyncio.create_task(house.line.ask(("GET", b"a")))
    with pytest.raises(StoreFault, match="no time left"):
        await house.line.ask(("GET", b"a"))
    await house.line.close()


async def test_having_no_time_left_says_nothing_about_redis() -> None:
    clock = FakeClock()
    house = House(patience_s=0.025, clock=clock, breaker=Breaker(clock, limit=1))
    await house.line.open()

    def take_twenty_ms(_: Command) -> bytes:
        clock.now += 0.020
        return b"OK"

    house.client.answer = take_twenty_ms
    house.line.begin_request()
    await house.line.ask(("GET", b"a"))
    house.hang()
    with pytest.raises(StoreFault, match="within 5 ms"):
        await house.line.ask(("GET", b"a"))
    assert house.line.breaker.closed
    await house.line.close()


async def test_a_call_given_up_goes_on_and_its_answer_harms_nobody(house: House) -> None:
    late: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    house.client.answer = lambda _: late
    with pytest.raises(StoreFault):
        await house.line.ask(("GET", b"a"))
    late.set_result(b"late")
    house.client.answer = lambda _: b"in time"
    assert await house.line.ask(("GET", b"a")) == [b"in time"]


async def test_after_some_failures_nobody_asks_any_more(house: House) -> None:
    house.break_off()
    for _ in range(3):
        with pytest.raises(StoreFault):
            await house.line.ask(("GET", b"a"))
    house.client.batches.clear()
    for _ in range(20):
        with pytest.raises(StoreAway):
            await house.line.ask(("GET", b"a"))
        with pytest.raises(StoreAway):
            await house.line.work(("GET", b"a"))
    assert ("GET", b"a") not in [command for batch in house.client.batches for command in batch]


async def test_when_it_answers_again_it_is_asked_again_by_itself(house: House) -> None:
    house.break_off()
    for _ in range(3):
        with pytest.raises(StoreFault):
            await house.line.ask(("GET", b"a"))
    house.mend()
    await eventually(lambda: house.line.breaker.closed)
    assert await house.line.ask(("GET", b"a")) == [b"OK"]
    await eventually(lambda: len(house.events) == 2)
    assert "connection refused" in house.events[0]
    assert "answers again" in house.events[1]


async def test_one_that_answers_too_late_is_not_taken_back(house: House) -> None:
    """It may be alive, but asking it would cost each request its patience."""
    house.break_off()
    for _ in range(3):
        with pytest.raises(StoreFault):
            await house.line.ask(("GET", b"a"))
    trials = []

    def answer_late(command: Command) -> asyncio.Future[bytes]:
        trials.append(command)
        loop = asyncio.get_running_loop()
        late: asyncio.Future[bytes] = loop.create_future()
        loop.call_later(0.1, lambda: late.done() or late.set_result(b"OK"))
        return late

    house.client.answer = answer_late
    await eventually(lambda: len(trials) >= 3)
    assert not house.line.breaker.closed


async def test_it_opens_without_anybody_there(house: House) -> None:
    del house
    absent = RedisLine("redis://127.0.0.1:1")
    await absent.open()
    with pytest.raises(StoreFault):
        await absent.ask(("PING",))
    await absent.close()


async def test_closing_ends_what_still_runs_and_closes_the_clients(house: House) -> None:
    house.hang()
    with pytest.raises(StoreFault):
        await house.line.ask(("GET", b"a"))
    async with asyncio.timeout(GENEROUS_S):
        await house.line.close()
    assert all(client.closed for client in house.clients)
    with pytest.raises(StoreFault, match="not open"):
        await house.line.ask(("GET", b"a"))


async def test_the_layer_gives_each_request_a_purse(house: House) -> None:
    asked: list[float] = []

    async def inner(call: Call, trail: Trail) -> Answer:
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(StoreFault):
                await house.line.ask(("GET", b"a"))
        asked.append(time.monotonic() - started)
        async for event in Inner()(call, trail):
            yield event

    house.hang()
    layer = WithPatience(house.line, inner)
    batches = len(house.client.batches)
    await hear(layer(call_of(), Trail("r")))
    await asyncio.sleep(0.5)
    trials = [batch for batch in house.client.batches[batches:] if batch != [("PING",)]]
    assert len(trials) == 1
    await hear(layer(call_of(), Trail("r")))


async def test_looking_through_keys_waits_for_no_stopped_redis(redis7: RedisServer) -> None:
    line = RedisLine(redis7.url)
    await line.open()
    redis7.stop()
    try:
        async with asyncio.timeout(GENEROUS_S):
            with pytest.raises(StoreFault):
                [key async for key in line.scan(b"*", "HASH")]
    finally:
        redis7.resume()
        await line.close()
