"""The semantic caches of gateways that share a Redis: what one learns, answers and forgets."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from cache.agree import text_of
from cache.archive import Erasure, Kept, Lesson, MemoryArchive, Summary
from cache.archive_redis import RedisArchive
from cache.namespace import Terms
from cache.semantic import budgeted
from cache.store.base import StoreFault
from cache.store.redis_line import RedisLine
from cache.verify import Policy
from cache.verify_others import Static, VCache
from tests.support.archived import loaded
from tests.support.house import AGAIN, FIRST, House
from tests.support.recordings import call_of
from tests.support.redis_server import RedisServer
from tests.support.shared import PATIENT_S
from tests.support.speakers import eventually

slow = pytest.mark.slow


@pytest.fixture
def server(redis7: RedisServer) -> RedisServer:
    redis7.client.flushall()
    return redis7


async def open_houses(server: RedisServer, *policies: Policy) -> list[House]:
    made = []
    for number, policy in enumerate(policies):
        archive = RedisArchive(
            RedisLine(server.url, patience_s=PATIENT_S), 1 << 24, clock=lambda: 1000.0
        )
        house = House(policy=policy, archive=archive, name=f"g{number}-")
        await house.restore()
        made.append(house)
    return made


async def close(houses: list[House]) -> None:
    for house in houses:
        await house.semantic.close()
        house.embedder.close()


@pytest.fixture
async def pair(server: RedisServer) -> AsyncIterator[list[House]]:
    made = await open_houses(server, Static(0.8, guards=True), Static(0.8, guards=True))
    yield made
    await close(made)


def entries(house: House) -> int:
    return sum(state.entries for state in house.semantic.state())


def wordings(house: House) -> list[str]:
    spaces = house.semantic._spaces._spaces.values()
    return [text_of(group.recording) for space in spaces for group in space._groups.values()]


@slow
async def test_what_one_has_answered_the_other_serves(pair: list[House]) -> None:
    one, two = pair
    answer, _ = await one.ask(FIRST)
    await eventually(lambda: entries(two) == 1)
    hit, trail = await two.ask(AGAIN)
    assert (hit, trail.cache[0].hit, two.model.asked) == (answer, True, [])
    other, _ = await two.ask(call_of(AGAIN, scope="tenant:other"))
    assert other != answer


@slow
async def test_what_one_purges_the_other_forgets(pair: list[House]) -> None:
    one, two = pair
    await one.ask(FIRST, tags=("a",))
    await eventually(lambda: entries(two) == 1)
    assert await two.semantic.purge(tag="a") == 1
    await eventually(lambda: entries(one) == 0)


@slow
async def test_a_wording_that_another_gateway_alone_holds_is_erased_there(
    server: RedisServer,
) -> None:
    """vCache keeps no question of bob's, but his answer's wording, and tells no other gateway."""
    houses = await open_houses(server, *(VCache(0.05, random.Random(n)) for n in (1, 2)))
    one, two = houses
    one.model.knows, two.model.knows = {FIRST: "In the app."}, {AGAIN: "in the app"}
    one.owner, two.owner = "ann", "bob"
    await one.ask(FIRST)
    await eventually(lambda: entries(two) == 1)
    await two.ask(AGAIN)
    assert (wordings(one), wordings(two)) == (["In the app."], ["in the app"])
    await one.semantic.purge(owner="bob")
    await eventually(lambda: wordings(two) == [])
    await close(houses)


@slow
async def test_an_answer_that_somebody_complains_of_leaves_both(pair: list[House]) -> None:
    one, two = pair
    _, trail = await one.ask(FIRST)
    await eventually(lambda: entries(two) == 1)
    assert await one.tell(trail) == "taught"
    await eventually(lambda: entries(two) == 0)


@slow
async def test_a_label_teaches_both_and_outlives_them(server: RedisServer) -> None:
    policies = [budgeted(Terms(max_error=0.05)) for _ in range(3)]
    houses = await open_houses(server, policies[0], policies[1])
    for number in range(130):
        await houses[number % 2].ask(f"word{number} subject{number % 9} matter{number % 9}")
    taught = sum(isinstance(told, Lesson) for told in await loaded(houses[0].archive))
    assert taught > 100
    await eventually(lambda: policies[0].labels == policies[1].labels == taught)
    asked = [policy.state().requests for policy in policies[:2]]
    await close(houses)
    third = await open_houses(server, policies[2])
    await close(third)
    assert policies[2].labels == taught
    assert policies[2].odds.weights.any()
    # What was asked since the other's last label is told with its next one.
    assert max(asked) <= policies[2].state().requests + 2


@slow
async def test_a_flush_forgets_questions_but_not_what_was_learnt(server: RedisServer) -> None:
    policy = budgeted(Terms(max_error=0.05))
    houses = await open_houses(server, policy)
    for number in range(20):
        await houses[0].ask(f"word{number} subject{number % 9} matter{number % 9}")
    labels = policy.labels
    server.client.flushall()
    await eventually(lambda: entries(houses[0]) == 0)
    await eventually(lambda: not houses[0].semantic._spaces.problem)
    await houses[0].ask(FIRST)
    assert entries(houses[0]) == 1
    assert policy.labels == labels > 0
    await close(houses)


@slow
async def test_while_redis_is_stopped_everything_is_passed_on(
    pair: list[House], server: RedisServer
) -> None:
    one, _ = pair
    await one.ask(FIRST)
    server.stop()
    try:
        await eventually(lambda: bool(one.semantic._spaces.problem))
        _, trail = await one.ask(AGAIN)
        assert trail.cache[0].detail == "the shared cache is out of touch"
        with pytest.raises(StoreFault):
            await one.semantic.purge(tag="a")
    finally:
        server.resume()
    await eventually(lambda: not one.semantic._spaces.problem)
    _, trail = await one.ask(AGAIN)
    assert trail.cache[0].hit


# --------------------------------------------------------------------------- while it is read


class Slow(MemoryArchive):
    """Something happens after a question was read and before it is there."""

    def __init__(self, questions: dict[tuple[bytes, int], Kept]) -> None:
        super().__init__()
        self.questions = questions
        self.house: House | None = None

    async def load(self) -> AsyncIterator[Kept | Summary | Lesson]:
        async for told in super().load():
            if self.house is not None:
                house, self.house = self.house, None
                assert await house.semantic.purge(tag="a") == 1
                await house.semantic._spaces.hear(Erasure(tag="b"))
                _, trail = await house.ask_unprepared(AGAIN)
                assert trail.cache[0].detail == "what was kept is being read"
            yield told


async def test_what_is_erased_while_it_is_read_does_not_come_back() -> None:
    first = House()
    for tag in ("a", "b", "c"):
        await first.ask(call_of(FIRST, scope=tag), tags=(tag,))
    archive = Slow(dict(first.archive.questions))
    again = House(archive=archive)
    archive.house = again
    await again.restore()
    first.embedder.close()
    again.embedder.close()
    assert [state.scope for state in again.semantic.state() if state.entries] == ["c"]
