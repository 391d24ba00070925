"""Redis is killed, stopped, filled, flushed and restarted under two gateways that share what they
answer by meaning.

Whatever becomes of it: each request is answered, nothing comes from another tenant or another
subject, and when Redis is well again what one gateway has answered is a near hit on the other. The
threshold is fixed, so that a single repetition in other words hits.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import pytest

from gateway.settings import ExactCache, SemanticCache
from tests.support.embedders import embedding_of
from tests.support.encoders import BagEncoder
from tests.support.redis_faults import FAULTS, Fault, Load, under_load
from tests.support.redis_server import running_redis
from tests.support.serving import Running
from tests.support.speakers import PATIENCE_S
from tests.support.twins import ask, gateways, ready

pytestmark = pytest.mark.slow

SUBJECTS = 60
WAYS = ("please", "kindly", "briefly", "again", "fully", "soon")


def question(rng: random.Random, answered: int) -> str:
    return asked(subject(rng.randrange(SUBJECTS), answered // 200), rng.choice(WAYS))


def subject(number: int, round_: int) -> str:
    """A word without digits: those would tell questions apart before their meaning does."""
    return f"subject{number}x{round_}".translate(str.maketrans("0123456789", "abcdefghij"))


def asked(about: str, way: str) -> str:
    return f"{way} tell me about {about} {about} {about}"


def fits(scope: str, text: str, answer: str) -> bool:
    about = text.rsplit(maxsplit=1)[-1]
    return answer.startswith(scope) and answer.endswith(about)


@pytest.mark.parametrize("version", [7, 8])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_no_request_fails_and_hits_by_meaning_resume(
    fault: Fault, version: int, tmp_path: Path
) -> None:
    with running_redis(version, tmp_path) as server:
        semantic = SemanticCache(
            enabled=True, store=server.url, policy="static", threshold=0.8, max_error=0.05
        )
        embeddings = [embedding_of(BagEncoder()) for _ in range(2)]
        async with gateways(
            server.url,
            exact=ExactCache(enabled=False, store="memory://"),
            semantic=semantic,
            embeddings=embeddings,
            pause_s=0.0005,
        ) as pair:
            await ready(pair)
            load = Load(pair, question, fits)
            await under_load(load, fault, server)
            assert load.wrong == []
            assert load.origins["semantic"] > 0
            await eventually_shared(pair)


async def eventually_shared(pair: list[Running]) -> None:
    """What one gateway answers is a near hit on the other: each try asks something new."""
    async with asyncio.timeout(PATIENCE_S):
        for number in itertools.count():
            about = subject(number, 777)
            await ask(pair[0], asked(about, WAYS[0]))
            await asyncio.sleep(0.2)
            reply = await ask(pair[1], asked(about, WAYS[1]))
            if reply.headers["sluice-origin"] == "semantic":
                return
