"""An answer does not depend on who else asks: bitwise, for the bundled models as served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.build import ModelSpec, build_lanes
from engine.contract import Call, Sampling
from engine.engine import Engine
from tests.support.engines import ask, chat

DEMO = Path(__file__).parents[2] / "demo"
KV_BYTES = 64 << 20

PROMPTS = (
    "What is 17 + 25?",
    "Hello! Who are you, and what can you do for me?",
    "Tell me about cats and their history in detail.",
    "Tell me about bread.",
    "Write a story about a king who sails to the moon.",
    "Name three rivers, then say which one is the longest of them and why.",
    "Why is the sky blue?",
    "Which birds cannot fly?",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DEMO / "large").is_dir(), reason="the bundled models are not here"),
]


@pytest.fixture(params=["small", "large"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Engine, str]]:
    name = request.param
    engine = Engine(build_lanes({name: ModelSpec(DEMO / name)}, kv_bytes=KV_BYTES))
    engine.start()
    yield engine, name
    await engine.stop()


def calls(model: str, scope: str) -> list[Call]:
    """Each prompt greedy and seeded, of different lengths so that some end before others. Each has
    a scope of its own: a prefix hit cuts a prompt elsewhere, which is another matter."""
    samplings = [(Sampling(temperature=0.0), 0), (Sampling(temperature=1.0, seed=7), 1)]
    return [
        chat(
            text,
            model=model,
            scope=f"{scope}{kind}{index}",
            sampling=sampling,
            max_tokens=24 + 5 * index,
            logprobs=True,
            top_logprobs=2,
        )
        for sampling, kind in samplings
        for index, text in enumerate(PROMPTS)
    ]


async def test_sixteen_at_once_get_what_each_gets_alone(engine: tuple[Engine, str]) -> None:
    running, name = engine
    answerer = running.answerer(name)
    alone = [await ask(answerer, call) for call in calls(name, "alone")]
    company = await asyncio.gather(*[ask(answerer, call) for call in calls(name, "company")])
    assert [a.tokens() for a in company] == [a.tokens() for a in alone]
    assert [a.logprobs() for a in company] == [a.logprobs() for a in alone]


async def test_who_comes_and_goes_meanwhile_changes_nothing(engine: tuple[Engine, str]) -> None:
    running, name = engine
    answerer = running.answerer(name)
    alone = [await ask(answerer, call) for call in calls(name, "alone")]

    async def later(index: int, call: Call) -> list[int]:
        await asyncio.sleep(0.03 * index)
        return (await ask(answerer, call)).tokens()

    staggered = [later(index, call) for index, call in enumerate(calls(name, "later"))]
    assert await asyncio.gather(*staggered) == [a.tokens() for a in alone]
