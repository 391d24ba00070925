"""Identical requests at several gateways share one generation.

Gateways here are SharedJoins, each with its own line to one real Redis. The fake model speaks only
when it is let, so what is shared and what is not does not depend on time; only how long it takes to
notice that somebody died does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cache.join_remote import Heard, SharedJoin
from cache.key import key_of
from cache.shared_log import FIRST_S, FlightNames, LogLost, Windows, read_log
from cache.store.base import StoreFault
from cache.store.breaker import Breaker
from cache.store.redis_client import Command
from cache.store.redis_index import Family
from cache.store.redis_line import RedisLine
from engine.contract import (
    AnswerError,
    CacheStatus,
    Call,
    Delta,
    Directives,
    End,
    Event,
    Failed,
    Finish,
    Start,
    Trail,
    UpstreamFailed,
)
from tests.support.recordings import FakeClock, answer_of, call_of, said
from tests.support.redis_server import RedisServer
from tests.support.shared import PATIENT_S
from tests.support.speakers import Generation, Listener, Model, eventually

pytestmark = pytest.mark.slow

EVENTS = answer_of("a", "b", "c")
FRAIL_S = 1.0
"""Patience where a leader is lost: it is noticed that much later, and not before."""


class Gateway:
    def __init__(self, server: RedisServer, patience_s: float = PATIENT_S) -> None:
        self.model = Model()
        self.settled = asyncio.Event()
        self.settled.set()
        self.line = RedisLine(server.url, patience_s=patience_s)
        self.join = SharedJoin(
            self.line,
            self.model,
            may_share=lambda call, _: call.n == 1,
            settle=self._settle,
        )
        self.listeners: list[Listener] = []

    async def _settle(self) -> None:
        await self.settled.wait()

    def ask(self, name: str = "r", call: Call | None = None, **trail: object) -> Listener:
        asked = Trail(name, **trail)  # type: ignore[arg-type]
        listener = Listener(self.join, call or call_of(), asked)
        self.listeners.append(listener)
        return listener

    async def run(self, number: int = 0) -> Generation:
        """Its model's run with this number, once it has begun."""
        await eventually(lambda: len(self.model.runs) > number)
        return self.model.runs[number]

    async def die(self) -> None:
        """As a killed process: its line is cut before anything can be said on it."""
        await self.line.close()
        await self.close()

    async def close(self) -> None:
        for listener in self.listeners:
            await listener.hang_up()
        await self.line.close()


@asynccontextmanager
async def gateways(
    server: RedisServer, count: int = 2, patience_s: float = PATIENT_S
) -> AsyncIterator[list[Gateway]]:
    made = [Gateway(server, patience_s) for _ in range(count)]
    for gateway in made:
        await gateway.line.open()
    try:
        yield made
    finally:
        for gateway in made:
            await gateway.close()


@pytest.fixture
def server(redis7: RedisServer) -> RedisServer:
    redis7.client.flushall()
    return redis7


@pytest.fixture
async def pair(server: RedisServer) -> AsyncIterator[list[Gateway]]:
    async with gateways(server) as made:
        yield made


@pytest.fixture
async def frail(server: RedisServer) -> AsyncIterator[list[Gateway]]:
    async with gateways(server, patience_s=FRAIL_S) as made:
        yield made


# ---------------------------------------------------------------------- sharing


async def test_two_gateways_compute_one_answer(pair: list[Gateway]) -> None:
    one, two = pair
    first = one.ask()
    run = await one.run()
    second = two.ask()
    await run.say(*EVENTS, None)
    await eventually(lambda: first.task.done() and second.task.done())
    assert first.heard[1:] == list(EVENTS[1:])
    assert second.heard[1:-1] == list(EVENTS[1:-1])
    assert not two.model.runs


async def test_who_comes_late_hears_the_beginning_and_then_the_live_stream(
    pair: list[Gateway],
) -> None:
    one, two = pair
    one.ask()
    run = await one.run()
    await run.say(*EVENTS[:2])
    late = two.ask()
    await eventually(lambda: said(late.heard) == "a")
    await run.say(EVENTS[2])
    await eventually(lambda: said(late.heard) == "ab")
    await run.say(*EVENTS[3:], None)
    await eventually(late.task.done)
    assert late.heard[1:-1] == list(EVENTS[1:-1])


async def test_a_follower_says_that_it_joined_and_paid_nothing(pair: list[Gateway]) -> None:
    one, two = pair
    one.ask("leader")
    run = await one.run()
    trail_before = [CacheStatus("exact", forward="miss")]
    follower = two.ask("follower", cache=trail_before)
    await run.say(*EVENTS, None)
    await eventually(follower.task.done)
    assert (follower.start.id, follower.start.origin) == ("follower", "joined")
    assert follower.end.usage.computed_tokens == 0
    assert follower.end.usage.completion_tokens == EVENTS[-1].usage.completion_tokens  # type: ignore[union-attr]
    assert follower.trail.cache[-1] == CacheStatus("exact", forward="miss", collapsed=True)


async def test_different_calls_scopes_and_ages_are_computed_apart(pair: list[Gateway]) -> None:
    one, two = pair
    one.ask("a")
    two.ask("b", call_of(scope="tenant:other"))
    two.ask("c", call_of("another question"))
    two.ask("d", directives=Directives(max_age_s=5.0))
    await eventually(lambda: len(one.model.runs) + len(two.model.runs) == 4)


async def test_what_may_not_be_shared_is_computed_by_each(pair: list[Gateway]) -> None:
    one, two = pair
    one.ask("a", call_of(n=2))
    two.ask("b", call_of(n=2))
    await eventually(lambda: len(one.model.runs) == len(two.model.runs) == 1)


async def test_the_lease_is_held_until_the_answer_is_stored(
    pair: list[Gateway], server: RedisServer
) -> None:
    one, two = pair
    one.settled.clear()
    first = one.ask()
    await (await one.run()).say(*EVENTS, None)
    await eventually(first.task.done)
    late = two.ask()
    await eventually(late.task.done)
    assert said(late.heard) == "abc"
    assert not two.model.runs
    one.settled.set()
    lease = FlightNames.of(key_of(call_of()), Directives()).lease
    await eventually(lambda: server.client.exists(lease) == 0)


async def test_an_answer_that_takes_long_keeps_its_lease_by_heartbeats(
    frail: list[Gateway],
) -> None:
    one, two = frail
    one.ask()
    run = await one.run()
    follower = two.ask()
    await asyncio.sleep(1.5 * Windows.of(one.line).lease_s)
    assert not two.model.runs
    await run.say(*EVENTS, None)
    await eventually(follower.task.done)
    assert said(follower.heard) == "abc"


async def test_all_keys_have_a_time_to_live_and_the_tenants_tag(
    pair: list[Gateway], server: RedisServer
) -> None:
    one, _ = pair
    listener = one.ask()
    await (await one.run()).say(EVENTS[0])
    await eventually(lambda: len(server.client.keys("*")) == 2)
    keys = server.client.keys("*")
    most_ms = Windows.of(one.line).log_s * 1e3
    assert all(0 < server.client.pttl(key) <= most_ms for key in keys)
    assert all(key.startswith(Family.of(key_of(call_of())).prefix) for key in keys)
    await listener.hang_up()


# ---------------------------------------------------------------------- leaders that are lost


async def test_when_the_leader_dies_unheard_one_follower_takes_over(server: RedisServer) -> None:
    async with gateways(server, 3, FRAIL_S) as (one, two, three):
        one.ask()
        await one.run()
        followers = [two.ask("f2"), three.ask("f3")]
        await asyncio.sleep(0.2)
        await one.die()
        await eventually(lambda: len(two.model.runs) + len(three.model.runs) == 1)
        [run] = two.model.runs + three.model.runs
        await run.say(*EVENTS, None)
        await eventually(lambda: all(follower.task.done() for follower in followers))
        assert [said(follower.heard) for follower in followers] == ["abc", "abc"]
        assert len(two.model.runs) + len(three.model.runs) == 1


async def test_what_was_heard_stands_and_the_new_answer_goes_on_from_there(
    frail: list[Gateway],
) -> None:
    one, two = frail
    one.ask()
    run = await one.run()
    await run.say(*EVENTS[:3])
    follower = two.ask()
    await eventually(lambda: said(follower.heard) == "ab")
    await one.die()
    again = await two.run()
    await again.say(*answer_of("abc", "d"), None)
    await eventually(follower.task.done)
    assert follower.error is None
    assert [type(event) for event in follower.heard].count(Start) == 1
    assert said(follower.heard) == "abcd"


async def test_an_answer_that_cannot_be_continued_word_for_word_ends_with_an_error(
    frail: list[Gateway],
) -> None:
    one, two = frail
    one.ask()
    run = await one.run()
    await run.say(*EVENTS[:3])
    follower = two.ask()
    await eventually(lambda: said(follower.heard) == "ab")
    await one.die()
    await (await two.run()).say(*answer_of("ax"), None)
    await eventually(follower.task.done)
    assert isinstance(follower.error, Failed)
    assert said(follower.heard) == "ab"


async def test_a_leader_that_fails_leaves_each_follower_to_ask_for_itself(
    pair: list[Gateway],
) -> None:
    one, two = pair
    first = one.ask()
    run = await one.run()
    follower = two.ask()
    await asyncio.sleep(0.1)
    await run.say(UpstreamFailed("the model of gateway one is broken"))
    await (await two.run()).say(*EVENTS, None)
    await eventually(lambda: first.task.done() and follower.task.done())
    assert isinstance(first.error, UpstreamFailed)
    assert said(follower.heard) == "abc"


async def test_when_nobody_listens_at_the_leaders_gateway_a_follower_starts_again(
    frail: list[Gateway],
) -> None:
    one, two = frail
    first = one.ask()
    run = await one.run()
    await run.say(*EVENTS[:2])
    follower = two.ask()
    await eventually(lambda: said(follower.heard) == "a")
    await first.hang_up()
    assert run.closed
    await (await two.run()).say(*EVENTS, None)
    await eventually(follower.task.done)
    assert said(follower.heard) == "abc"


# ---------------------------------------------------------------------- Redis misbehaves


async def test_without_redis_everybody_computes_alone(server: RedisServer) -> None:
    gateway = Gateway(server)
    listener = gateway.ask()  # its line was never opened
    await (await gateway.run()).say(*EVENTS, None)
    await eventually(listener.task.done)
    assert said(listener.heard) == "abc"
    await gateway.close()


@pytest.mark.parametrize("damage", ["flush", "lease of a wrong type", "a post that is rubbish"])
async def test_a_follower_whose_log_is_damaged_still_gets_the_whole_answer(
    frail: list[Gateway], server: RedisServer, damage: str
) -> None:
    one, two = frail
    one.ask()
    run = await one.run()
    await run.say(*EVENTS[:2])
    follower = two.ask()
    await eventually(lambda: said(follower.heard) == "a")
    names = FlightNames.of(key_of(call_of()), Directives())
    [log] = server.client.keys(names.log_prefix + b"*")
    if damage == "flush":
        server.client.flushall()
    elif damage == "a post that is rubbish":
        server.client.xadd(log, {"p": b"\xc1rubbish"})
    else:
        server.client.delete(names.lease, log)
        server.client.rpush(names.lease, "not", "a", "lease")
    again = await two.run()
    await again.say(*EVENTS, None)
    await eventually(follower.task.done)
    assert said(follower.heard) == "abc"
    assert follower.error is None
    await run.say(*EVENTS[2:], None)
    await eventually(lambda: all(item.task.done() for item in one.listeners))
    assert said(one.listeners[0].heard) == "abc"


async def test_another_calls_log_is_not_listened_to(
    pair: list[Gateway], server: RedisServer
) -> None:
    """The lease of a call points, by damage or malice, to where another tenant's answer is."""
    one, two = pair
    mine, theirs = call_of(scope="tenant:mine"), call_of(scope="tenant:theirs")
    one.ask("theirs", theirs)
    await (await one.run()).say(*EVENTS[:2])
    other = FlightNames.of(key_of(theirs), Directives())
    await eventually(lambda: bool(server.client.keys(other.log_prefix + b"*")))
    [log] = server.client.keys(other.log_prefix + b"*")
    token = log.removeprefix(other.log_prefix)
    own = FlightNames.of(key_of(mine), Directives())
    server.client.set(own.lease, token)
    for _, fields in server.client.xrange(log):
        server.client.xadd(own.log(token), fields)
    listener = two.ask("mine", mine)
    await (await two.run()).say(*answer_of("m", "y"), None)
    await eventually(listener.task.done)
    assert said(listener.heard) == "my"


class Silent:
    """A line on which no post comes, while time passes."""

    def __init__(self, patience_s: float, clock: FakeClock) -> None:
        self.patience_s = patience_s
        self.breaker = Breaker(clock)
        self._clock = clock

    async def wait_for(self, *_commands: Command, timeout_s: float) -> list[object]:
        self._clock.now += 0.1
        return [None]


@pytest.mark.parametrize("patience_s", [0.025, 5.0])
async def test_who_has_more_patience_with_redis_waits_longer_for_a_first_post(
    patience_s: float,
) -> None:
    clock = FakeClock()
    began, line = clock.now, Silent(patience_s, clock)
    names = FlightNames.of(key_of(call_of()), Directives())
    log = read_log(line, names, b"token", clock=clock)  # type: ignore[arg-type]
    with pytest.raises(LogLost, match="silent"):
        await anext(log)
    assert clock.now - began == pytest.approx(FIRST_S + patience_s, abs=0.11)


# ---------------------------------------------------------------------- going on


async def continued(first: list[Event], second: list[Event]) -> list[Event]:
    """What is passed on of two sources, the first of which breaks off."""

    async def play(events: list[Event]) -> AsyncIterator[Event]:
        for event in events:
            yield event

    heard = Heard()
    passed = [event async for event in heard.note(play(first))]
    return passed + [event async for event in heard.go_on(play(second))]


FULL = list(answer_of("Hel", "lo", " wor", "ld"))


@pytest.mark.parametrize("cut", range(len(FULL)))
async def test_a_continued_answer_says_what_a_whole_one_does(cut: int) -> None:
    other_pieces = list(answer_of("H", "ello w", "orld"))
    events = await continued(FULL[:cut], other_pieces)
    assert said(events) == "Hello world"
    assert [type(event) for event in events if not isinstance(event, Delta)] == [Start, Finish, End]


@pytest.mark.parametrize(
    ("heard", "second"),
    [
        (FULL[:3], answer_of("Hex")),
        (FULL[:3], answer_of("H")),
        (FULL[:6], answer_of("Hello world, and more")),
        (FULL[:6], FULL[:5] + FULL[-1:]),
    ],
    ids=["differs", "is shorter", "goes on after its finish", "ends without its finish"],
)
async def test_an_answer_that_does_not_begin_as_heard_is_not_passed_on(
    heard: list[Event], second: list[Event]
) -> None:
    with pytest.raises(AnswerError, match="word for word"):
        await continued(heard, list(second))


async def test_tool_calls_are_compared_one_by_one() -> None:
    first, second = (
        '{"index":0,"function":{"name":"f"}}',
        '{"index":0,"function":{"arguments":"1"}}',
    )
    full = [FULL[0], Delta(0, "tool", first), Delta(0, "tool", second), *FULL[-2:]]
    assert await continued(full[:2], full) == full
    changed = [full[0], Delta(0, "tool", first[:-2] + " }}"), *full[2:]]
    with pytest.raises(AnswerError):
        await continued(full[:2], changed)


async def test_a_claim_that_was_heard_after_all_is_led(server: RedisServer) -> None:
    """Its reply came too late; others see the lease and have to find a log."""
    async with gateways(server) as (one, two):
        ask = one.line.ask

        async def lose_the_reply(*commands: Command) -> list[object]:
            await ask(*commands)
            raise StoreFault("No answer from Redis within 25 ms.")

        one.line.ask = lose_the_reply  # type: ignore[method-assign]
        one.ask()
        run = await one.run()
        follower = two.ask()
        await run.say(*EVENTS, None)
        await eventually(follower.task.done)
        assert said(follower.heard) == "abc"
        assert not two.model.runs


async def test_a_leader_with_nothing_to_say_is_followed_on_a_redis_with_its_own_clock(
    server: RedisServer,
) -> None:
    """Redis ends a wait without news up to 100 ms late: no reply by then is no fault of anybody."""
    line = RedisLine(server.url, patience_s=0.1)
    await line.open()
    names = FlightNames.of(key_of(call_of()), Directives())
    heard = read_log(line, names, b"nobody")
    with pytest.raises(LogLost, match="silent"):
        await anext(heard)
    await line.close()
