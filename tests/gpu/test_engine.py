"""The engine on a GPU against transformers, greedy, on random weights of each family's shape and on
the bundled models.

What counts as equal in bf16: tests/support/strays.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.contract import Call, Sampling, Trail
from engine.engine import Engine
from engine.lane import Lane
from engine.scheduler import Limits
from radix import check
from tests.support.checkpoints import FAMILIES, make_checkpoint
from tests.support.gpu_cases import SEED
from tests.support.strays import Judge, Reference

DEMO = Path(__file__).parents[2] / "demo"
VOCAB = 2000
LONGEST = 900


@pytest.fixture(scope="module", params=FAMILIES)
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    pytest.importorskip("transformers")
    path = make_dummy(tmp_path_factory.mktemp("models") / request.param, request.param)
    return Reference.load(path, "cuda")


def make_dummy(path: Path, family: str) -> Path:
    return make_checkpoint(
        path,
        family,
        vocab=VOCAB,
        layers=4,
        hidden=512,
        heads=8,
        kv_heads=2,
        head_dim=64,
        ffn=1024,
        context=2048,
        tie=family in ("qwen2", "qwen3"),
        dtype=torch.bfloat16,
        generation={"eos_token_id": None},
        config={"eos_token_id": None},
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def prompts(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    """Ragged ones, some of which begin alike."""
    common = rng.integers(10, VOCAB, 304)
    found = []
    for at in range(count):
        own = rng.integers(10, VOCAB, int(rng.integers(2, LONGEST - 304)))
        found.append(tuple(int(t) for t in (np.concatenate((common, own)) if at % 2 else own)))
    return found


async def tokens_of(engine: Engine, name: str, prompt: tuple[int, ...], count: int) -> list[int]:
    call = Call(
        kind="text",
        model=name,
        scope="s",
        prompt=prompt,
        sampling=Sampling(temperature=0.0),
        max_tokens=count,
    )
    tokens: list[int] = []
    async for event in engine.answerer(name)(call, Trail("r")):
        tokens += getattr(event, "token_ids", ())
    return tokens


def answers(
    lanes: dict[str, Lane], asked: list[tuple[str, tuple[int, ...]]], count: int, rounds: int = 1
) -> list[list[list[int]]]:
    """What is answered in each round, all asked at once. The books are clean afterwards."""

    async def run() -> list[list[list[int]]]:
        engine = Engine(lanes)
        engine.start()
        try:
            return [
                await asyncio.gather(
                    *(tokens_of(engine, name, prompt, count) for name, prompt in asked)
                )
                for _ in range(rounds)
            ]
        finally:
            await engine.stop(5.0)

    found = asyncio.run(run())
    for lane in lanes.values():
        check(lane.tree)
        assert lane.tree.pages.num_running == 0
    return found


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "launch by launch": {"graphs": False},
    "each prefix by itself": {"share_prefixes": False},
    "in chunks": {"limits": Limits(max_batched_tokens=96, max_running=32)},
    "in chunks, launch by launch": {
        "limits": Limits(max_batched_tokens=96, max_running=32),
        "graphs": False,
    },
    "preempted": {
        "num_pages": 140,
        "count": 160,
        "limits": Limits(max_batched_tokens=512, max_running=32),
    },
    "preempted, in chunks": {
        "num_pages": 140,
        "count": 160,
        "limits": Limits(max_batched_tokens=96, max_running=32),
    },
    "preempted, in chunks, launch by launch": {
        "num_pages": 140,
        "count": 160,
        "limits": Limits(max_batched_tokens=96, max_running=32),
        "graphs": False,
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_transformers(
    reference: Reference, rng: np.random.Generator, mode: str
) -> None:
    from tests.support.gpu_lanes import gpu_lane

    options = dict(MODES[mode])
    count = options.pop("count", 48)
    lane = gpu_lane(reference.path, **options)
    asked = prompts(rng, 14)
    rounds = answers({"small": lane}, [("small", p) for p in asked], count, rounds=2)
    assert ("preempted" in mode) is (lane.scheduler.num_preemptions > 0)
    judge = Judge(reference)
    for said in rounds:  # the second finds its prompts in the tree
        for prompt, answer in zip(asked, said, strict=True):
            assert len(answer) == count
            judge.hear(prompt, answer)
    judge.assert_greedy()


@pytest.mark.parametrize("mode", ["plain", "launch by launch", "in chunks"])
@pytest.mark.parametrize("name", ["small", "large"])
def test_the_bundled_models_answer_as_in_transformers(
    rng: np.random.Generator, name: str, mode: str
) -> None:
    from tests.support.gpu_lanes import gpu_lane

    pytest.importorskip("transformers")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not (DEMO / name).is_dir():
        pytest.skip("the bundled models are not here")
    lane = gpu_lane(DEMO / name, **MODES[mode])
    asked = prompts(rng, 8)
    rounds = answers({"small": lane}, [("small", p) for p in asked], 48, rounds=2)
    judge = Judge(Reference.load(DEMO / name, "cuda"))
    for said in rounds:
        for prompt, answer in zip(asked, said, strict=True):
            judge.hear(prompt, answer)
    judge.assert_tied()


def test_an_answer_alone_is_transformers(reference: Reference, rng: np.random.Generator) -> None:
    from tests.support.gpu_lanes import gpu_lane

    lane = gpu_lane(reference.path)
    judge = Judge(reference)
    for prompt in prompts(rng, 6):
        for (answer,) in answers({"small": lane}, [("small", prompt)], 64, rounds=2):
            judge.hear(prompt, answer)
    judge.assert_greedy()


@pytest.mark.parametrize(
    "mode", ["plain", "launch by launch", "in chunks", "preempted", "preempted, in chunks"]
)
def test_two_models_together_answer_as_each_does(
    reference: Reference, rng: np.random.Generator, tmp_path: Path, mode: str
) -> None:
    from tests.support.gpu_lanes import gpu_lane

    path = make_checkpoint(
        tmp_path / "other", "llama", vocab=VOCAB, layers=2, hidden=256, heads=4, kv_heads=4,
        head_dim=64, ffn=512, context=2048, dtype=torch.bfloat16, seed=9,
    )  # fmt: skip
    references = {"small": reference, "other": Reference.load(path, "cuda")}
    options = dict(MODES[mode])
    count = options.pop("count", 40)
    lanes = {name: gpu_lane(one.path, name, **options) for name, one in references.items()}
    named = [(name, prompt) for prompt in prompts(rng, 12) for name in lanes]
    (both,) = answers(lanes, named, count)
    for name, one in references.items():
        assert ("preempted" in mode) is (lanes[name].scheduler.num_preemptions > 0)
        judge = Judge(one)
        for (whose, prompt), answer in zip(named, both, strict=True):
            if whose == name:
                assert len(answer) == count
                judge.hear(prompt, answer)
        judge.assert_greedy()


@pytest.fixture(autouse=True)
def _free_the_card() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
