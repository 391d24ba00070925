"""Two gateways with one Redis: answers, generations and purges are shared; tenants are not."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from cache.store.base import Which
from gateway.settings import ExactCache
from tests.support.redis_server import RedisServer
from tests.support.shared import stacks
from tests.support.speakers import eventually
from tests.support.twins import ALICE, BOB, ask, begun, computed, gateways, text_of


@pytest.fixture
def server(redis7: RedisServer) -> RedisServer:
    redis7.client.flushall()
    return redis7


async def test_what_one_gateway_computed_is_a_hit_on_the_other(server: RedisServer) -> None:
    async with gateways(server.url) as (one, two):
        first = await ask(one, "what is a sluice?")
        await eventually(lambda: server.client.keys("sluice:1:*:i"))
        second = await ask(two, "what is a sluice?")
        assert second.headers["sluice-origin"] == "exact"
        assert second.headers["cache-status"].startswith("exact; hit")
        assert text_of(second) == text_of(first)
        assert second.json()["usage"]["sluice"]["computed_tokens"] == 0
        assert computed(two) == 0


async def test_identical_requests_at_both_gateways_are_computed_once(server: RedisServer) -> None:
    """The model says nothing before all are there: a stream's head comes when it has joined, and
    the others of its gateway came before it."""
    gate = asyncio.Event()
    async with gateways(server.url, gate=gate) as pair, AsyncExitStack() as opened:
        asking = [
            asyncio.create_task(ask(gateway, "count to ten")) for gateway in pair for _ in range(2)
        ]
        await eventually(lambda: all(one.system.drain.inflight == 2 for one in pair))
        streams = [
            await opened.enter_async_context(begun(gateway, "count to ten")) for gateway in pair
        ]
        gate.set()
        whole = await asyncio.gather(*asking)
        for stream in streams:
            assert (await stream.aread()).endswith(b"data: [DONE]\n\n")
        assert sum(map(computed, pair)) == 1
        replies = [*whole, *streams]
        assert [reply.status_code for reply in replies] == [200] * 6
        assert [reply.headers["sluice-origin"] for reply in replies].count("joined") == 5
        assert len({text_of(reply) for reply in whole}) == 1


async def test_another_tenant_is_never_served_what_this_one_stored(server: RedisServer) -> None:
    async with gateways(server.url) as (one, two):
        await ask(one, "the plan", ALICE)
        await eventually(lambda: server.client.keys("sluice:1:*:i"))
        for gateway in (one, two):
            reply = await ask(gateway, "the plan", BOB)
            assert "tenant:bob" in text_of(reply)
            assert "alice" not in text_of(reply)
        assert computed(one) + computed(two) == 2


@pytest.mark.parametrize("which", [Which(tag="user:7"), Which(scope="tenant:alice"), Which()])
async def test_a_second_after_a_purge_no_gateway_serves_the_entry(
    server: RedisServer, which: Which
) -> None:
    async with gateways(server.url) as (one, two), stacks(server) as [purger]:
        await ask(one, "erase me", **{"sluice-tags": "user:7"})
        await eventually(lambda: server.client.keys("sluice:1:*:i"))
        for gateway in (one, two):
            assert (await ask(gateway, "erase me")).headers["sluice-origin"] == "exact"
        assert await purger.redis.purge(which) == 1
        await asyncio.sleep(1.0)
        for gateway in (one, two):
            reply = await ask(gateway, "erase me", **{"cache-control": "only-if-cached"})
            assert reply.status_code == 504


async def test_gateways_start_and_answer_without_a_redis() -> None:
    async with gateways("redis://127.0.0.1:1/0") as (one, two):
        for gateway in (one, two):
            for _ in range(2):
                reply = await ask(gateway, "anybody there?")
                assert reply.status_code == 200
                assert reply.headers["sluice-origin"] == "small"


async def test_a_tenants_rate_is_one_for_both_gateways(server: RedisServer) -> None:
    """So few a minute that the next is not due while the test lasts."""
    async with gateways(server.url, rpm=4) as both:
        asking = [ask(gateway, f"question {i}") for i in range(6) for gateway in both]
        statuses = [reply.status_code for reply in await asyncio.gather(*asking)]
        assert statuses.count(200) == 4
        assert statuses.count(429) == 8
        refused = await ask(both[0], "one more")
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert int(refused.headers["retry-after"]) > 0
        assert (await ask(both[1], "another tenant's", BOB)).status_code == 200


async def test_a_tenants_requests_in_flight_are_bounded_over_both(server: RedisServer) -> None:
    """None ends before all have come."""
    gate = asyncio.Event()
    async with gateways(server.url, gate=gate, max_concurrent=5) as both:
        asking = [
            asyncio.create_task(ask(gateway, f"question {i}")) for i in range(8) for gateway in both
        ]
        await eventually(lambda: sum(one.done() for one in asking) == 11)
        assert {one.result().status_code for one in asking if one.done()} == {429}
        gate.set()
        statuses = [reply.status_code for reply in await asyncio.gather(*asking)]
        assert statuses.count(200) == 5
        assert statuses.count(429) == 11


async def test_without_redis_a_gateway_spends_its_slice_and_then_says_503(
    server: RedisServer,
) -> None:
    """A slice is a fiftieth: two cents here, and each of these may cost 0.42 of a cent."""
    gate = asyncio.Event()
    gate.set()
    alone = ExactCache(store="memory://")
    async with gateways(server.url, gate=gate, limits_s=1.0, exact=alone, budget_usd_day=1.0) as (
        one,
        two,
    ):
        for gateway in (one, two):
            assert (await ask(gateway, "first")).status_code == 200
        gate.clear()
        server.stop()
        try:
            asking = [asyncio.create_task(ask(one, f"question {i}")) for i in range(8)]
            await eventually(lambda: sum(each.done() for each in asking) == 4)
            gate.set()
            replies = await asyncio.gather(*asking)
            assert (await ask(one, "not budgeted", BOB)).status_code == 200
        finally:
            server.resume()
    statuses = [reply.status_code for reply in replies]
    assert sorted(statuses) == [200] * 4 + [503] * 4
    refused = replies[statuses.index(503)]
    assert refused.json()["error"]["code"] == "budget_store_away"
    assert int(refused.headers["retry-after"]) >= 1
