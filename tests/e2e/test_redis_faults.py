"""Redis is killed, stopped, filled, flushed and restarted while two gateways are asked.

Whatever becomes of it: each request is answered, with its own tenant's answer to its own question,
and when Redis is well again what one gateway computes is a hit on the other. Times are printed by
bench/redis.py; none is judged here.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import pytest

from gateway.settings import ExactCache
from tests.support.redis_faults import FAULTS, Fault, Load, under_load
from tests.support.redis_server import running_redis
from tests.support.serving import Running
from tests.support.speakers import PATIENCE_S
from tests.support.twins import ask, gateways

pytestmark = pytest.mark.slow

QUESTIONS = 60
HURRIED_S = 0.25
"""Patience with Redis: little, since a stopped one is waited for, and ten times what a busy machine
takes to answer."""


def question(rng: random.Random, answered: int) -> str:
    return f"question {rng.randrange(QUESTIONS)} of {answered // 200}"


def fits(scope: str, text: str, answer: str) -> bool:
    return answer.replace(" ", "") == f"{scope} asked: {text}".replace(" ", "")


@pytest.mark.parametrize("version", [7, 8])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_no_request_fails_and_caching_resumes(
    fault: Fault, version: int, tmp_path: Path
) -> None:
    with running_redis(version, tmp_path) as server:
        exact = ExactCache(store=server.url, patience_s=HURRIED_S)
        async with gateways(server.url, pause_s=0.0005, exact=exact) as pair:
            load = Load(pair, question, fits)
            await under_load(load, fault, server)
            assert load.wrong == []
            assert load.origins["exact"] > 0
            await eventually_shared(pair)


async def eventually_shared(pair: list[Running]) -> None:
    """What one gateway computes is a hit on the other: each try asks something new."""
    async with asyncio.timeout(PATIENCE_S):
        for number in itertools.count():
            await ask(pair[0], f"is it back, time {number}?")
            await asyncio.sleep(0.1)
            reply = await ask(pair[1], f"is it back, time {number}?")
            if reply.headers["sluice-origin"] == "exact":
                return
