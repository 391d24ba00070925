"""Memory that runs out in a step costs time and no answer: what comes is what an engine with room
says, and only who does not fit alone fails."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch

from engine.ceiling import GROWS_S, Ceiling
from engine.contract import Failed, Trail
from engine.cuda.layout import Shape, Step
from engine.engine import Engine
from engine.lane import Lane
from engine.models.decoder import Decoder
from engine.scheduler import Limits
from engine.sequence import Chunk, OutOfMemory, State
from engine.shortage import lacks_memory, telling_shortage
from radix import check
from tests.support.checkpoints import make_checkpoint
from tests.support.device_twin import TwinModel, twin_lane
from tests.support.engines import Answered, KvRunner, ask, chat, fake_lane, real_lane
from tests.support.planning import House, alone

LIMITS = Limits(max_batched_tokens=64, max_running=12)
Told = list[str]


def size_of(chunks: list[Chunk]) -> int:
    return sum(chunk.length for chunk in chunks)


@contextlib.asynccontextmanager
async def serving(lane: Lane, told: Told) -> AsyncIterator[Engine]:
    """A running engine; afterwards every page is accounted for."""
    engine = Engine({lane.name: lane}, report=lambda what, _: told.append(what))
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop(5.0)
    check(lane.tree)
    assert lane.tree.pages.num_running == 0
    assert not lane.tree.leases


async def answers(engine: Engine, count: int = 10) -> list[Answered]:
    """Prompts of 15 to 100 tokens, some of which begin alike, from three tenants."""
    calls = [
        chat(("The house rules. " * (at % 3)) + f"{at}" * at, max_tokens=8 + at)
        for at in range(count)
    ]
    model = engine.answerer("small")
    return await asyncio.gather(
        *(ask(model, call, Trail(f"r{at}", f"t{at % 3}")) for at, call in enumerate(calls))
    )


def texts(said: list[Answered]) -> list[str]:
    return [one.text() for one in said]


async def undisturbed(lane: Lane) -> list[str]:
    async with serving(lane, []) as engine:
        return texts(await answers(engine))


# ----------------------------------------------------------------------- what a step may hold


def test_each_lack_halves_and_what_is_one_token_of_one_sequence_is_the_smallest() -> None:
    ceiling = Ceiling(2048, 256)
    assert ceiling.lower(1000, 100, 0.0)
    assert (ceiling.tokens, ceiling.rows) == (500, 50)
    assert ceiling.lower(3, 3, 0.0)
    assert (ceiling.tokens, ceiling.rows) == (1, 1)
    assert not ceiling.lower(1, 1, 0.0)


def test_it_grows_slowly_once_memory_was_enough_for_a_while() -> None:
    ceiling = Ceiling(2048, 256)
    ceiling.lower(2, 1, 100.0)
    ceiling.look(100.0 + GROWS_S - 0.1)
    assert ceiling.tokens == 1
    now, sizes = 100.0, []
    while ceiling.tokens < 2048 or ceiling.rows < 256:
        now += GROWS_S
        ceiling.look(now)
        sizes.append((ceiling.tokens, ceiling.rows))
    assert sizes[:4] == [(2, 1), (4, 2), (7, 4), (11, 7)]
    assert all(rows < tokens for tokens, rows in sizes)
    assert now - 100.0 < 120.0
    ceiling.look(now + 1000.0)
    assert (ceiling.tokens, ceiling.rows) == (2048, 256)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_after_a_lack_is_at_most_half_as_large_and_loses_no_page(depth: int) -> None:
    house = House(num_pages=200, depth=depth)
    for _ in range(8):
        house.submit(10, answer=12)
    for _ in range(3):
        house.step()
    while house.flying:
        house.read()
    failing = house.scheduler.plan()
    assert house.scheduler.shrink(failing)
    house.check()
    house.now += 1
    smaller = house.scheduler.plan()
    assert 0 < len(smaller) <= len(failing) // 2
    assert 0 < size_of(smaller) <= size_of(failing) // 2
    assert house.scheduler.num_preemptions > 0


def test_set_back_they_find_what_they_had_and_end_as_if_alone() -> None:
    house = House(num_pages=200)
    everyone = [house.submit(10, answer=12) for _ in range(8)]
    for _ in range(6):
        house.step()
    house.scheduler.shrink(house.scheduler.plan())
    back = [s for s in everyone if s.state is State.WAITING]
    assert back
    spent = {s: s.spent for s in back}
    house.scheduler._ceiling.look(house.now + GROWS_S)
    house.drain()
    for sequence in everyone:
        assert sequence.tokens[sequence.num_prompt : sequence.known].tolist() == alone(sequence)
    for sequence in back:
        assert sequence.spent - (sequence.known - 1) <= spent[sequence] % 4 + 4


def test_of_the_few_places_that_are_left_each_tenant_has_its_part() -> None:
    house = House(num_pages=400, max_waiting=100)
    for _ in range(40):
        house.submit(12, answer=40, tenant="flood")
    for _ in range(4):
        house.step()
    while house.scheduler.most[1] > 4:
        house.lack()
    quiet = house.submit(12, answer=4, tenant="quiet")
    house.step()
    house.step()
    assert len([s for s in house.scheduler.running if s.tenant == "flood"]) >= 2
    assert quiet.state is State.RUNNING
    house.drain()


# ----------------------------------------------------------------------- the whole engine


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("room", [1, 7, 30])
async def test_with_room_for_so_many_tokens_answers_are_those_of_an_engine_with_room_for_all(
    depth: int, room: int
) -> None:
    def limited(chunks: list[Chunk]) -> None:
        if size_of(chunks) > room:
            raise OutOfMemory

    told: Told = []
    lane = fake_lane(num_pages=512, limits=LIMITS, runner=KvRunner(512, 4, limited, depth=depth))
    async with serving(lane, told) as engine:
        said = texts(await answers(engine))
        again = await answers(engine)
    assert said == texts(again) == await undisturbed(fake_lane(num_pages=512, limits=LIMITS))
    assert sum(one.usage.cached_tokens for one in again) > 100, "the tree was kept"
    assert told
    assert all("engine.max_batched_tokens" in line for line in told)
    assert lane.runner.recovered == len(told)  # type: ignore[attr-defined]


@pytest.mark.parametrize("depth", [1, 2])
async def test_lacks_at_any_step_change_no_answer(depth: int) -> None:
    rng = random.Random(2)

    def now_and_then(chunks: list[Chunk]) -> None:
        if size_of(chunks) > 1 and rng.random() < 0.3:
            raise OutOfMemory

    told: Told = []
    lane = fake_lane(num_pages=96, limits=LIMITS, runner=KvRunner(96, 4, now_and_then, depth=depth))
    async with serving(lane, told) as engine:
        said = [texts(await answers(engine)) for _ in range(3)]
    assert said == [await undisturbed(fake_lane(num_pages=512, limits=LIMITS))] * 3
    assert told


async def test_who_does_not_fit_alone_fails_with_what_to_change_and_the_others_go_on() -> None:
    def cursed(chunks: list[Chunk]) -> None:
        if any(chunk.sequence.tenant == "big" for chunk in chunks):
            raise OutOfMemory

    told: Told = []
    lane = fake_lane(num_pages=512, limits=LIMITS, runner=KvRunner(512, 4, cursed, depth=2))
    async with serving(lane, told) as engine:
        model = engine.answerer("small")
        big = asyncio.create_task(ask(model, chat("big"), Trail("r99", "big")))
        said = texts(await answers(engine))
        with pytest.raises(Failed, match=r"request r99.*engine\.kv_memory_mib lower") as failed:
            await big
    assert not any(f"r{at}," in str(failed.value) for at in range(10)), "others' ids"
    assert said == await undisturbed(fake_lane(num_pages=512, limits=LIMITS))


async def test_once_memory_is_there_again_steps_grow_back() -> None:
    now, full = [0.0], threading.Event()
    sizes: list[int] = []

    def limited(chunks: list[Chunk]) -> None:
        if full.is_set() and size_of(chunks) > 2:
            raise OutOfMemory
        sizes.append(size_of(chunks))

    lane = fake_lane(
        num_pages=512, limits=LIMITS, runner=KvRunner(512, 4, limited), clock=lambda: now[0]
    )
    full.set()
    async with serving(lane, []) as engine:
        await answers(engine)
        full.clear()
        assert max(sizes) <= 2
        for _ in range(20):
            now[0] += GROWS_S
            text = f"{now[0]}: something else. " * 8
            await ask(engine.answerer("small"), chat(text, max_tokens=2))
    assert max(sizes) == 64


# ----------------------------------------------------------------------- real runners


@pytest.mark.parametrize("where", ["before", "behind"])
async def test_where_the_device_s_forward_pass_or_the_draw_behind_it_lacks_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Behind it, the pages hold keys and values of the failed step."""
    path = make_checkpoint(tmp_path / "model", layers=2)
    wanted = await undisturbed(twin_lane(path, limits=LIMITS))
    forward = TwinModel.forward
    lacks: list[int] = []

    def tight(
        self: TwinModel, step: Step, shape: Shape, tables: torch.Tensor, drawn: torch.Tensor
    ) -> torch.Tensor:
        large = shape.rows > 40
        if large and where == "before":
            lacks.append(shape.rows)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        logits = forward(self, step, shape, tables, drawn)
        if large:
            lacks.append(shape.rows)
            raise RuntimeError("CUDA error: out of memory")
        return logits

    monkeypatch.setattr(TwinModel, "forward", tight)
    told: Told = []
    async with serving(twin_lane(path, limits=LIMITS), told) as engine:
        assert [texts(await answers(engine)) for _ in range(2)] == [wanted, wanted]
    assert lacks
    assert told


async def test_on_a_cpu_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_checkpoint(tmp_path / "model", layers=2)
    wanted = await undisturbed(real_lane(path, limits=LIMITS))
    forward: Callable[..., torch.Tensor] = Decoder.forward

    def tight(self: Decoder, tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(tokens) > 5:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return forward(self, tokens, *rest)

    monkeypatch.setattr(Decoder, "forward", tight)
    told: Told = []
    async with serving(real_lane(path, limits=LIMITS), told) as engine:
        assert texts(await answers(engine)) == wanted
    assert told


def test_a_lack_of_memory_is_told_from_what_is_broken() -> None:
    assert lacks_memory(MemoryError())
    assert lacks_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert lacks_memory(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert lacks_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not lacks_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not lacks_memory(ValueError("out of memory"))


def test_who_keeps_the_error_does_not_keep_what_the_step_had_made() -> None:
    class Activations:
        """Stands for a tensor: weak references say when it is gone."""

    made: list[weakref.ref[Activations]] = []

    def forward() -> None:
        hidden = Activations()
        made.append(weakref.ref(hidden))
        raise MemoryError

    with pytest.raises(OutOfMemory) as kept, telling_shortage():
        forward()
    assert isinstance(kept.value.__cause__, MemoryError)
    assert made[0]() is None
