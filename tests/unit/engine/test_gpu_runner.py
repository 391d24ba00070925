"""The GPU's runner over its torch twin: padding, block tables and tokens that the host has not read
change no answer; what fails is said."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.contract import Failed, Sampling, Trail
from engine.cuda.layout import Shape, block_bytes, shape_for, shapes_ahead
from engine.cuda.runner import GpuRunner
from engine.cuda.tables import Tables
from engine.engine import Engine
from engine.loading import load_decoder, read_checkpoint
from engine.scheduler import Limits
from engine.sequence import SamplingParams, Sequence
from radix import check
from tests.support.checkpoints import FAMILIES, make_checkpoint
from tests.support.device_twin import TwinModel, twin_lane, twin_runner
from tests.support.engines import Answered, ask, chat, real_lane
from tests.support.steps import Steps, generated, load_runner, make_sequence

CPU = torch.device("cpu")


def runner_of(path: Path, page_size: int = 4, num_pages: int = 256) -> GpuRunner:
    decoder = load_decoder(read_checkpoint(path), torch.float32)
    return twin_runner(decoder, page_size=page_size, num_pages=num_pages)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [10**9, 7])
def test_answers_are_the_cpu_runners(tmp_path: Path, family: str, chunk: int) -> None:
    path = make_checkpoint(tmp_path / "model", family)
    answers = []
    for runner in (load_runner(path), runner_of(path)):
        sequences = [make_sequence(range(3 + at, 9 + 5 * at)) for at in range(5)]
        Steps(runner).generate(sequences, 10, chunk=chunk)
        answers.append([generated(sequence)[:10] for sequence in sequences])
    assert answers[0] == answers[1]


def test_log_probabilities_are_the_cpu_runners(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    told = []
    for runner in (load_runner(path), runner_of(path)):
        asking = make_sequence(range(3, 20), SamplingParams(logprobs=3))
        silent = make_sequence(range(4, 20))
        told.append(Steps(runner).step({silent: 16, asking: 17}))
    ours, theirs = told[1], told[0]
    assert [one.token for one in ours] == [one.token for one in theirs]
    assert (ours[0].logprob, ours[0].top) == (0.0, ())
    assert ours[1].logprob == pytest.approx(theirs[1].logprob, abs=1e-4)
    assert [token for token, _ in ours[1].top] == [token for token, _ in theirs[1].top]


def test_a_preempted_sequence_goes_on_where_it_was(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    steps = Steps(runner_of(path))
    one, other = make_sequence(range(3, 12)), make_sequence(range(30, 50))
    steps.generate([one, other], 4)
    steps.preempt(one)
    steps.generate([other], 7)
    steps.generate([one, other], 9)
    alone = make_sequence(range(3, 12))
    Steps(load_runner(path)).generate([alone], 9)
    assert generated(one)[:9] == generated(alone)


def calls() -> list[dict[str, object]]:
    """Of all kinds that change how a token is drawn or when."""
    shared = "What the house rules are: " * 6
    seeded = Sampling(temperature=1.0, seed=5)
    return [
        {"text": shared + "one", "max_tokens": 20},
        {"text": shared + "two", "max_tokens": 14, "n": 3, "sampling": seeded},
        {"text": "short", "max_tokens": 90, "logprobs": True, "top_logprobs": 2},
        {"text": shared + "three", "max_tokens": 9, "sampling": Sampling(presence_penalty=1.5)},
        {"text": "other", "max_tokens": 80, "sampling": Sampling(logit_bias=((7, 4.0),))},
        {"text": shared, "max_tokens": 12, "stop": ("e", "a")},
    ]


async def answers_of(engine: Engine, name: str) -> list[Answered]:
    asked = [chat(str(c["text"]), **{k: v for k, v in c.items() if k != "text"}) for c in calls()]
    model = engine.answerer(name)
    return await asyncio.gather(*(ask(model, replace(call, model=name)) for call in asked))


@pytest.mark.parametrize(
    ("num_pages", "budget"), [(256, 512), (26, 48)], ids=["roomy", "preempting in chunks"]
)
async def test_the_engine_answers_two_steps_deep_as_it_does_step_by_step(
    tmp_path: Path, num_pages: int, budget: int
) -> None:
    path = make_checkpoint(tmp_path / "model")
    limits = Limits(max_batched_tokens=budget, max_running=8)
    lane = twin_lane(path, num_pages=num_pages, limits=limits)
    engine = Engine({"small": lane, "plain": real_lane(path, "plain")})
    engine.start()
    try:
        ahead, plain = await asyncio.gather(
            answers_of(engine, "small"), answers_of(engine, "plain")
        )
        again = await answers_of(engine, "small")
        preemptions = engine.stats()["small"].preemptions_total
    finally:
        await engine.stop()
    for said, same, expected in zip(ahead, again, plain, strict=True):
        choices = sorted(expected.reasons)
        texts = [(said.text(i), same.text(i)) for i in choices if not ahead_draws_its_own(said)]
        assert texts == [(expected.text(i),) * 2 for i in choices if not ahead_draws_its_own(said)]
        assert [len(said.tokens(i)) for i in choices] == [len(same.tokens(i)) for i in choices]
    assert (preemptions > 0) is (num_pages == 26)
    check(lane.tree)
    assert lane.tree.pages.num_running == 0


def ahead_draws_its_own(said: Answered) -> bool:
    """The twin's plain race for seeded rows is not the CPU's sampler with its rounding."""
    return len(said.reasons) == 3


async def test_random_arrivals_hang_ups_and_preemptions_end_with_clean_books(
    tmp_path: Path,
) -> None:
    path = make_checkpoint(tmp_path / "model", layers=1)
    limits = Limits(max_batched_tokens=64, max_running=6)
    lane = twin_lane(path, num_pages=48, limits=limits)
    rng = random.Random(3)
    engine = Engine({"small": lane})
    engine.start()

    async def one(at: int) -> None:
        await asyncio.sleep(rng.random() * 0.2)
        call = chat("ab" * rng.randrange(40), max_tokens=rng.randrange(1, 30))
        async with asyncio.timeout(rng.choice([0.05, 600.0])):
            await ask(engine.answerer("small"), call, Trail(f"r{at}", f"t{at % 3}"))

    try:
        ended = await asyncio.gather(*(one(at) for at in range(40)), return_exceptions=True)
        await asyncio.sleep(0.3)  # those who hung up are gone within a step
    finally:
        await engine.stop()
    assert {type(e) for e in ended} <= {type(None), TimeoutError}
    assert None in ended
    check(lane.tree)
    assert lane.tree.pages.num_running == 0
    assert not lane.tree.leases


async def test_a_step_that_breaks_on_the_device_fails_its_requests_and_the_engine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = twin_lane(make_checkpoint(tmp_path / "model"))
    forward, broken = TwinModel.forward, []

    def breaking(self: TwinModel, *args: object) -> torch.Tensor:
        if broken:
            raise RuntimeError(broken.pop())
        return forward(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(TwinModel, "forward", breaking)
    engine = Engine({"small": lane}, report=lambda *_: None)
    engine.start()
    try:
        model = engine.answerer("small")
        before = await ask(model, chat("The same", max_tokens=12))
        broken.append("CUDA error: an illegal memory access was encountered")
        with pytest.raises(Failed, match="r7"):
            await ask(model, chat("The same", max_tokens=12), Trail("r7"))
        after = await ask(model, chat("The same", max_tokens=12))
    finally:
        await engine.stop()
    assert after.tokens() == before.tokens()
    assert after.usage.cached_tokens == 0


def test_steps_are_padded_to_few_shapes() -> None:
    assert shape_for(3, 0, 0) == Shape(4)
    assert shape_for(0, 17, 1) == Shape(0, 32, 8)
    assert shape_for(2, 100, 9) == Shape(16, 128, 32)
    assert shape_for(130, 5000, 3) == Shape(256, 5056, 8)
    assert not shape_for(0, 5000, 3).small
    assert shape_for(0, 5000, 1, alone=True) == Shape(0, 5120, 8, alone=True)
    shapes = {shape_for(d, p, 1) for d in range(1, 257) for p in (0, 1, 300)}
    assert len(shapes) < 30
    assert block_bytes(Shape(128)) < 16_000


@pytest.mark.parametrize("prefixes", [True, False])
def test_every_shape_that_is_worth_a_graph_is_made_ahead(prefixes: bool) -> None:
    ahead = shapes_ahead(64, 512, prefixes=prefixes, dense=prefixes)
    alone = {shape_for(0, p, 1, alone=True) for p in range(1, 513)}
    assert (alone <= set(ahead)) is prefixes
    assert len(ahead) == len(set(ahead)) < 120
    decode = {shape_for(count, 0, 0) for count in range(1, 65)}
    beside = {shape_for(d, p, c) for d in range(64) for p in range(1, 449) for c in (1, 30)}
    assert {shape for shape in decode | beside if shape.small} <= set(ahead)
    assert any(shape.prefix for shape in ahead) is prefixes


def test_a_row_of_the_block_tables_follows_its_sequence() -> None:
    tables = Tables(max_running=2, max_pages=8, device=CPU)
    one = make_sequence(range(4), number=1)
    one.pages = [5, 6]
    tables.begin()
    row = tables.row(one)
    assert tables.device[row, :2].tolist() == [5, 6]
    one.pages.append(7)
    tables.begin()
    assert tables.row(one, grows=True) == row
    assert (tables.updates_at, tables.updates) == ([row * 8 + 2], [7])
    one.pages[0] = 3
    one.moved += 1
    tables.begin()
    assert tables.row(one) == row
    assert tables.device[row, :3].tolist() == [3, 6, 7]


def test_rows_are_lent_again_but_never_those_of_the_last_two_steps() -> None:
    tables = Tables(max_running=2, max_pages=4, device=CPU)
    sequences = [make_sequence(range(3), number=at) for at in range(20)]
    lent: list[dict[Sequence, int]] = []
    for at in range(0, 18, 2):
        tables.begin()
        lent.append({s: tables.row(s) for s in sequences[at : at + 2]})
        recent = [row for step in lent[-2:] for row in step.values()]
        assert len(set(recent)) == len(recent)
        assert tables.nobody not in recent
