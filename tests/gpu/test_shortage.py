"""Memory that runs out on a real card: steps shrink, who waits is preempted, and answers stay
transformers'; only who finds no memory for one token fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from engine.contract import Failed
from engine.engine import Engine
from engine.lane import Lane
from engine.scheduler import Limits
from radix import check
from tests.gpu.test_engine import make_dummy, prompts, tokens_of
from tests.support.gpu_cases import SEED
from tests.support.strays import Judge, Reference

FREE_BYTES = 48 << 20
"""A step of 8192 tokens of the dummy takes about twice as much, one of 1024 a quarter."""

Heard = list[tuple[tuple[int, ...], list[int]]]
"""Prompts and answers."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    pytest.importorskip("transformers")
    return Reference.load(make_dummy(tmp_path_factory.mktemp("models") / "m", "llama"), "cuda")


@pytest.fixture(autouse=True)
def _free_the_card() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@contextmanager
def little_memory() -> Iterator[None]:
    """The allocator gets no more than FREE_BYTES beyond what it has lent."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + FREE_BYTES) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def assert_clean(lane: Lane) -> None:
    check(lane.tree)
    assert lane.tree.pages.num_running == 0
    assert not lane.tree.leases


@pytest.mark.parametrize("graphs", [False, True], ids=["launch by launch", "graphs"])
def test_where_memory_runs_out_for_real_every_answer_is_transformers_still(
    reference: Reference, graphs: bool
) -> None:
    from tests.support.gpu_lanes import gpu_lane

    limits = Limits(max_batched_tokens=8192, max_running=64)
    lane = gpu_lane(reference.path, num_pages=4096, limits=limits, graphs=graphs)
    lane.runner._ahead = iter(())  # type: ignore[attr-defined]  # nothing runs beside what we ask
    lacks: list[BaseException | None] = []
    """Kept, as a collector of errors may: what the steps had made must not stay with them."""
    rng = np.random.default_rng(SEED)
    judge = Judge(reference)

    async def run() -> Heard:
        engine = Engine({"small": lane}, report=lambda _, error: lacks.append(error.__cause__))
        engine.start()

        async def ask() -> Heard:
            asked = prompts(rng, 40)
            said = await asyncio.gather(*(tokens_of(engine, "small", p, 24) for p in asked))
            return list(zip(asked, said, strict=True))

        try:
            heard = await ask()  # what libraries keep is taken now
            assert not lacks
            with little_memory():
                heard += await ask()
            count = len(lacks)
            assert count, "memory did not run out: this test shows nothing"
            heard += await ask()
            assert len(lacks) == count
        finally:
            await engine.stop(5.0)
        return heard

    for prompt, answer in asyncio.run(run()):
        assert len(answer) == 24
        judge.hear(prompt, answer)
    assert all(isinstance(one, torch.OutOfMemoryError) for one in lacks)
    assert lane.scheduler.num_preemptions > 0
    judge.assert_greedy()
    assert_clean(lane)


def test_who_finds_no_memory_for_one_token_fails_and_the_engine_goes_on(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.cuda.model import TritonModel
    from tests.support.gpu_lanes import gpu_lane

    forward = TritonModel.forward
    broken: list[str] = []

    def breaking(self: TritonModel, *args: Any) -> torch.Tensor:
        if broken:
            raise torch.OutOfMemoryError(broken[-1])
        return forward(self, *args)

    monkeypatch.setattr(TritonModel, "forward", breaking)
    (prompt,) = prompts(np.random.default_rng(SEED), 1)
    lane = gpu_lane(reference.path, graphs=False)

    async def run() -> list[list[int]]:
        engine = Engine({"small": lane}, report=lambda *_: None)
        engine.start()
        try:
            before = await tokens_of(engine, "small", prompt, 16)
            broken.append("CUDA out of memory")
            with pytest.raises(Failed, match=r"request r.*engine\.kv_memory_mib lower"):
                await tokens_of(engine, "small", prompt, 16)
            broken.clear()
            return [before, await tokens_of(engine, "small", prompt, 16)]
        finally:
            await engine.stop()

    judge = Judge(reference)
    for answer in asyncio.run(run()):
        judge.hear(prompt, answer)
    judge.assert_tied()  # of so few tokens, how often says nothing
    assert_clean(lane)
