"""Random arrivals, lengths, ways to draw, hang-ups and preemptions of two models on a GPU, for a
while: the books are clean at the end, and memory stays what it was after the first third.

Memory of the card is what its driver says, so that graphs and what libraries keep count; of the
process, what it holds now, not at most; and Python's objects are counted: one forgotten request is
a dozen of them. What a graph takes that was captured meanwhile is allowed for. A longer soak sees
slower leaks:

    SLUICE_SOAK_S=180 python3 -m pytest tests/gpu/test_soak.py
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.contract import Answerer, Call, Sampling, Trail
from engine.engine import Engine
from engine.lane import Lane
from engine.scheduler import Limits
from radix import check
from tests.support.checkpoints import make_checkpoint
from tests.support.gpu_cases import SEED

SECONDS = float(os.environ.get("SLUICE_SOAK_S", "20"))
VOCAB = 2000
ROUNDS, WARM = 6, 2
"""Measured after each but the first ones."""
CARD_BYTES, PROCESS_BYTES = 16 << 20, 32 << 20
GRAPH_BYTES, GRAPH_OBJECTS = 8 << 20, 100
"""For each graph that was captured meanwhile."""
OBJECTS = 2.0
"""For each request."""


def two_lanes(folder: Path) -> dict[str, Lane]:
    from tests.support.gpu_lanes import gpu_lane

    sizes = {"small": (256, 2), "large": (512, 4)}
    return {
        name: gpu_lane(
            make_checkpoint(
                folder / name, "qwen3", vocab=VOCAB, layers=layers, hidden=hidden, heads=8,
                kv_heads=2, head_dim=64, ffn=2 * hidden, context=2048, dtype=torch.bfloat16,
            ),
            name,
            num_pages=400,
            limits=Limits(max_batched_tokens=512, max_running=48, max_waiting=10_000),
        )
        for name, (hidden, layers) in sizes.items()
    }  # fmt: skip


def random_call(rng: np.random.Generator, name: str) -> Call:
    """Some begin alike, some draw by chance, some tell log-probabilities."""
    common = np.arange(10, 10 + 16 * int(rng.integers(0, 12)))
    own = rng.integers(10, VOCAB, int(rng.integers(1, 300)))
    sampling = [
        Sampling(temperature=0.0),
        Sampling(temperature=0.8, top_p=0.9),
        Sampling(temperature=1.0, top_k=20, min_p=0.01, presence_penalty=0.5),
        Sampling(temperature=0.7, logit_bias=((17, 5.0),), repetition_penalty=1.2),
    ][int(rng.choice(4, p=[0.6, 0.2, 0.1, 0.1]))]
    return Call(
        kind="text",
        model=name,
        scope=f"s{rng.integers(3)}",
        prompt=tuple(int(token) for token in (*common, *own)),
        sampling=sampling,
        max_tokens=int(rng.integers(1, 200)),
        logprobs=bool(rng.random() < 0.1),
        top_logprobs=2,
    )


async def one(answerer: Answerer, call: Call, patience_s: float) -> bool:
    """Whether the answer came whole before the caller hung up."""
    try:
        async with asyncio.timeout(patience_s):
            async for _ in answerer(call, Trail("r", tenant=call.scope)):
                pass
    except TimeoutError:
        return False
    return True


async def traffic(engine: Engine, rng: np.random.Generator, seconds: float) -> list[bool]:
    """Waves of arrivals; every fourth caller is impatient."""
    until = time.monotonic() + seconds
    asked: list[asyncio.Task[bool]] = []
    while time.monotonic() < until:
        name = "small" if rng.random() < 0.6 else "large"
        patience = float(rng.exponential(0.2)) if rng.random() < 0.25 else 600.0
        asked.append(
            asyncio.create_task(one(engine.answerer(name), random_call(rng, name), patience))
        )
        await asyncio.sleep(float(rng.exponential(0.004 if rng.random() < 0.9 else 0.1)))
        open_ = [task for task in asked[-400:] if not task.done()]
        if len(open_) > 200:
            await asyncio.wait(open_, return_when=asyncio.FIRST_COMPLETED)
    return await asyncio.gather(*asked)


@dataclass(frozen=True)
class Held:
    """What is held while nobody asks."""

    card: int
    process: int
    objects: int
    graphs: int
    requests: int


def held_now(lanes: dict[str, Lane], requests: int) -> Held:
    """Empties the prefix trees first, whose nodes come and go: the engine sleeps."""
    for lane in lanes.values():
        lane.scheduler.forget()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    graphs = sum(len(lane.runner._graphs._captured) for lane in lanes.values())  # type: ignore[attr-defined]
    return Held(
        total - free, pages * resource.getpagesize(), len(gc.get_objects()), graphs, requests
    )


def assert_flat(first: Held, last: Held) -> None:
    told = f"{first} → {last}, SEED={SEED}"
    new = last.graphs - first.graphs
    card, process = CARD_BYTES + new * GRAPH_BYTES, PROCESS_BYTES + new * GRAPH_BYTES
    objects = OBJECTS * (last.requests - first.requests) + new * GRAPH_OBJECTS
    assert last.card - first.card < card, f"memory of the card grew: {told}"
    assert last.process - first.process < process, f"memory of the process grew: {told}"
    assert last.objects - first.objects < objects, f"something is kept: {told}"


def count_preparing(lanes: dict[str, Lane]) -> list[str]:
    """Names of the lanes whose runners have nothing left to prepare, as they get there."""
    done: list[str] = []

    def watched(name: str, prepare: Callable[[], bool]) -> bool:
        more = prepare()
        if not more and name not in done:
            done.append(name)
        return more

    for name, lane in lanes.items():
        lane.runner.prepare = partial(watched, name, lane.runner.prepare)  # type: ignore[method-assign]
    return done


def test_a_soak_ends_with_clean_books_and_flat_memory(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    lanes = two_lanes(tmp_path)
    rng = np.random.default_rng(SEED)
    failures: list[str] = []

    prepared = count_preparing(lanes)

    async def soak() -> tuple[list[bool], list[Held]]:
        engine = Engine(lanes, report=lambda what, error: failures.append(f"{what}: {error!r}"))
        engine.start()
        ended: list[bool] = []
        held = []
        try:
            while len(prepared) < len(lanes):  # noqa: ASYNC110 - a thread fills it
                await asyncio.sleep(0.1)
            for _ in range(ROUNDS):
                ended += await traffic(engine, rng, SECONDS / ROUNDS)
                await asyncio.sleep(0.5)
                held.append(held_now(lanes, len(ended)))
        finally:
            await engine.stop()
        return ended, held[WARM - 1 :]

    ended, held = asyncio.run(soak())
    assert not failures
    assert 0 < ended.count(False) < len(ended) / 2
    assert sum(lane.scheduler.num_preemptions for lane in lanes.values()) > 0
    for lane in lanes.values():
        check(lane.tree)
        assert lane.tree.pages.num_running == 0
        assert not lane.tree.leases
    assert_flat(held[0], held[-1])
    record_property("soaked", f"{len(ended)} requests, {ended.count(False)} hung up, held {held}")
