"""The engine on a GPU against transformers, greedy, on random weights of each family's shape.

Both compute in bf16, whose rounding moves a logit by some hundredths here; where the two likeliest
tokens are closer than that, either may come out, and what follows differs. So answers are not
compared with answers. The reference walks along the engine's own answer in fp32, and at each token
asks how far its logit lies below the best one: 0 where they agree. Where they do not, it must be a
tie: no more than twice what transformers' own bf16 run errs by, and over all answers not more often
nor by more than the tokens that that run likes best.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.contract import Call, Failed, Sampling, Trail
from engine.engine import Engine
from engine.lane import Lane
from engine.scheduler import Limits
from radix import check
from tests.support.checkpoints import FAMILIES, make_checkpoint

VOCAB = 2000
LONGEST = 900


@dataclass(frozen=True)
class House:
    """A checkpoint and transformers' view of it, in fp32 and in bf16."""

    path: Path
    exact: Any
    rounded: Any


@pytest.fixture(scope="module", params=FAMILIES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> House:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    transformers = pytest.importorskip("transformers")
    path = make_checkpoint(
        tmp_path_factory.mktemp("models") / request.param,
        request.param,
        vocab=VOCAB,
        layers=4,
        hidden=512,
        heads=8,
        kv_heads=2,
        head_dim=64,
        ffn=1024,
        context=2048,
        tie=request.param in ("qwen2", "qwen3"),
        dtype=torch.bfloat16,
        generation={"eos_token_id": None},
        config={"eos_token_id": None},
    )
    load = transformers.AutoModelForCausalLM.from_pretrained
    exact = load(path, dtype=torch.float32).cuda().eval()
    rounded = load(path, dtype=torch.bfloat16).cuda().eval()
    return House(path, exact, rounded)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


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


class Judge:
    """Compares answers with the reference's, and at the end how often and how far they strayed."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._ours: list[torch.Tensor] = []
        self._theirs: list[torch.Tensor] = []
        self._errs = 0.0

    @torch.inference_mode()
    def hear(self, prompt: tuple[int, ...], answer: list[int]) -> None:
        ids = torch.tensor([[*prompt, *answer[:-1]]], device="cuda")
        rows = slice(len(prompt) - 1, None)
        exact = self._house.exact(ids).logits[0, rows].float()
        rounded = self._house.rounded(ids).logits[0, rows].float()
        self._ours.append(_below(exact, torch.tensor(answer, device="cuda")))
        self._theirs.append(_below(exact, rounded.argmax(dim=1)))
        self._errs = max(self._errs, float((exact - rounded).abs().max()))

    def assert_greedy(self) -> None:
        """Each token was the likeliest one or tied with it, and not more often, nor by more, than
        transformers' own bf16 run strays."""
        ours, theirs = torch.cat(self._ours), torch.cat(self._theirs)
        assert float(ours.max()) <= 2 * self._errs
        told = f"ours {float(ours.mean()):.5f}, theirs {float(theirs.mean()):.5f}"
        assert float(ours.mean()) <= 1.5 * float(theirs.mean()) + 0.002, told
        strays = [float((one > 0).float().mean()) for one in (ours, theirs)]
        assert strays[0] <= 1.5 * strays[1] + 0.02, strays


def _below(exact: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How far each token's logit lies below the best one."""
    return exact.max(dim=1).values - exact.gather(1, tokens.unsqueeze(1))[:, 0]


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
    "preempted, in chunks, launch by launch": {
        "num_pages": 140,
        "count": 160,
        "limits": Limits(max_batched_tokens=96, max_running=32),
        "graphs": False,
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_transformers(house: House, rng: np.random.Generator, mode: str) -> None:
    from tests.support.gpu_lanes import gpu_lane

    options = dict(MODES[mode])
    count = options.pop("count", 48)
    lane = gpu_lane(house.path, **options)
    asked = prompts(rng, 14)
    rounds = answers({"small": lane}, [("small", p) for p in asked], count, rounds=2)
    assert ("preempted" in mode) is (lane.scheduler.num_preemptions > 0)
    judge = Judge(house)
    for said in rounds:  # the second finds its prompts in the tree
        for prompt, answer in zip(asked, said, strict=True):
            assert len(answer) == count
            judge.hear(prompt, answer)
    judge.assert_greedy()


def test_an_answer_alone_is_transformers(house: House, rng: np.random.Generator) -> None:
    from tests.support.gpu_lanes import gpu_lane

    lane = gpu_lane(house.path)
    judge = Judge(house)
    for prompt in prompts(rng, 6):
        for (answer,) in answers({"small": lane}, [("small", prompt)], 64, rounds=2):
            judge.hear(prompt, answer)
    judge.assert_greedy()


def test_two_models_together_answer_as_each_does(
    house: House, rng: np.random.Generator, tmp_path: Path
) -> None:
    from tests.support.gpu_lanes import gpu_lane

    other = make_checkpoint(
        tmp_path / "other", "llama", vocab=VOCAB, layers=2, hidden=256, heads=4, kv_heads=4,
        head_dim=64, ffn=512, context=2048, dtype=torch.bfloat16, seed=9,
    )  # fmt: skip
    lanes = {"small": gpu_lane(house.path), "other": gpu_lane(other, "other")}
    asked = prompts(rng, 12)
    named = [("small", p) for p in asked] + [("other", p) for p in asked]
    (both,) = answers(lanes, named, 40)
    judge = Judge(house)
    for prompt, answer in zip(asked, both[:12], strict=True):
        judge.hear(prompt, answer)
    judge.assert_greedy()


def test_a_lack_of_memory_in_one_step_fails_its_requests_and_the_engine_goes_on(
    house: House, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
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
    (prompt,) = prompts(rng, 1)
    lane = gpu_lane(house.path, graphs=False)

    async def run() -> list[list[int]]:
        engine = Engine({"small": lane}, report=lambda *_: None)
        engine.start()
        try:
            before = await tokens_of(engine, "small", prompt, 16)
            broken.append("CUDA out of memory")
            with pytest.raises(Failed, match="requests r"):
                await tokens_of(engine, "small", prompt, 16)
            broken.clear()
            return [before, await tokens_of(engine, "small", prompt, 16)]
        finally:
            await engine.stop()

    before, after = asyncio.run(run())
    assert before == after
    check(lane.tree)


@pytest.fixture(autouse=True)
def _free_the_card() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
