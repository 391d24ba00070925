"""The engine's async face over a runner that checks KV: who waits for what, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from engine import mailbox
from engine.contract import (
    AnswerError,
    BadCall,
    DeadlineExceeded,
    Delta,
    End,
    Failed,
    Finish,
    Overloaded,
    Sampling,
    Start,
    Trail,
)
from engine.engine import Engine
from engine.lane import Lane
from engine.scheduler import Limits
from engine.sequence import Chunk, RunnerLost, Sequence
from radix import check
from tests.support.engines import KvRunner, ask, chat, fake_lane

PATIENCE_S = 60.0
"""It ends a wait that would never end, and no more."""


@contextlib.asynccontextmanager
async def serving(*lanes: Lane, **options: object) -> AsyncIterator[Engine]:
    """A running engine; afterwards nothing may be left over."""
    engine = Engine({lane.name: lane for lane in lanes}, **options)  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
        await until(lambda: all(not s.running and not s.waiting for s in engine.stats().values()))
    finally:
        await engine.stop()
    for lane in lanes:
        check(lane.tree)
        assert lane.tree.pages.num_running == 0
        assert not lane.tree.leases


async def until(holds: Callable[[], bool], limit_s: float = PATIENCE_S) -> None:
    """Wait for another thread."""
    ends = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < ends, "it never came to hold"
        await asyncio.sleep(0.002)


def lane_with(
    before: Callable[[list[Chunk]], None], name: str = "small", **options: object
) -> Lane:
    """A lane whose runner calls `before` at each step."""
    return fake_lane(name, runner=KvRunner(64, 4, before), **options)  # type: ignore[arg-type]


class Gate:
    """Lets a runner go on step by step."""

    def __init__(self, steps: int = 0) -> None:
        self.steps = threading.Semaphore(steps)

    def __call__(self, chunks: list[Chunk]) -> None:
        assert self.steps.acquire(timeout=PATIENCE_S), "nobody opened the gate"

    def open(self, steps: int = 100_000) -> None:
        self.steps.release(steps)


# ----------------------------------------------------------------------- an answer


async def test_an_answer_is_start_deltas_finish_end() -> None:
    async with serving(fake_lane()) as engine:
        said = await ask(engine.answerer("small"), chat(max_tokens=5))
    kinds = [type(event) for event in said.events]
    assert kinds[0] is Start
    assert kinds[-2:] == [Finish, End]
    assert set(kinds[1:-2]) == {Delta}
    assert said.start.id == "r1"
    assert (said.start.model, said.start.origin) == ("small", "small")
    assert said.reasons == {0: "length"}
    assert said.usage.completion_tokens == len(said.tokens()) == 5


async def test_the_usage_says_what_was_cached_and_what_was_computed() -> None:
    async with serving(fake_lane()) as engine:
        first = await ask(engine.answerer("small"), chat(max_tokens=6))
        again = await ask(engine.answerer("small"), chat(max_tokens=6))
    prompt = first.usage.prompt_tokens
    assert first.usage.cached_tokens == 0
    assert first.usage.computed_tokens == prompt + 6
    assert again.usage.cached_tokens == (prompt - 1) // 4 * 4 > 0
    assert again.usage.computed_tokens == prompt - again.usage.cached_tokens + 6
    assert again.text() == first.text()


async def test_the_trail_says_how_long_each_stage_took() -> None:
    async with serving(fake_lane()) as engine:
        said = await ask(engine.answerer("small"), chat(max_tokens=5))
    assert set(said.trail.spans_ms) == {"queue", "prefill", "decode"}
    assert all(span >= 0 for span in said.trail.spans_ms.values())


async def test_choices_share_their_prompt_and_end_one_by_one() -> None:
    async with serving(fake_lane()) as engine:
        sampling = Sampling(temperature=1.0, seed=1)
        said = await ask(engine.answerer("small"), chat(n=3, max_tokens=4, sampling=sampling))
    assert said.reasons == {0: "length", 1: "length", 2: "length"}
    assert len({said.text(index) for index in range(3)}) == 3
    prompt = said.usage.prompt_tokens
    assert said.usage.completion_tokens == 12
    shared = (prompt - 1) // 4 * 4
    assert said.usage.computed_tokens == prompt + 2 * (prompt - shared) + 12


async def test_an_end_token_ends_the_answer_and_is_not_part_of_it() -> None:
    async with serving(fake_lane()) as engine:
        long = await ask(engine.answerer("small"), chat(max_tokens=8))
    lane = fake_lane()
    ends = frozenset({long.tokens()[5]})
    stopping = Lane(
        name="small",
        text=lane.text,
        tree=lane.tree,
        scheduler=lane.scheduler,
        runner=lane.runner,
        context=lane.context,
        vocab=lane.vocab,
        stop_ids=ends,
    )
    async with serving(stopping) as engine:
        said = await ask(engine.answerer("small"), chat(max_tokens=8))
    assert said.reasons == {0: "stop"}
    assert said.tokens() == long.tokens()[:5]
    assert said.usage.completion_tokens == 6


async def test_a_stop_string_ends_the_answer_before_itself() -> None:
    async with serving(fake_lane()) as engine:
        long = await ask(engine.answerer("small"), chat(max_tokens=30))
        stop = long.text()[9:13]
        said = await ask(engine.answerer("small"), chat(max_tokens=30, stop=("nowhere", stop)))
    assert said.text() == long.text()[: long.text().index(stop)]
    assert said.reasons == {0: "stop"}
    assert said.tokens() == long.tokens()[: len(said.tokens())]
    assert said.usage.completion_tokens < 30


async def test_logprobs_come_one_for_each_token() -> None:
    async with serving(fake_lane()) as engine:
        said = await ask(
            engine.answerer("small"), chat(max_tokens=6, logprobs=True, top_logprobs=2)
        )
        without = await ask(engine.answerer("small"), chat(max_tokens=6))
    assert len(said.logprobs()) == 6
    assert all(len(entry.top) == 2 for entry in said.logprobs())  # type: ignore[attr-defined]
    assert without.logprobs() == []


async def test_many_at_once_are_batched_and_answered_as_if_alone() -> None:
    gate = Gate()
    lane = fake_lane(num_pages=256, runner=KvRunner(256, 4, gate))
    async with serving(lane) as engine:
        answerer = engine.answerer("small")
        calls = [chat(f"Question {at}", max_tokens=12) for at in range(12)]
        asking = asyncio.gather(*(ask(answerer, call) for call in calls))
        await until(lambda: engine._loop.num_live == 12)
        gate.open()
        together = await asking
        steps = lane.runner.steps  # type: ignore[attr-defined]
    assert steps < 12 * 12 / 2
    async with serving(fake_lane()) as engine:
        alone = [await ask(engine.answerer("small"), call) for call in calls]
    assert [said.text() for said in together] == [said.text() for said in alone]


async def test_launching_ahead_changes_no_answer_and_no_usage() -> None:
    def ahead(name: str) -> Lane:
        return fake_lane(name, num_pages=256, runner=KvRunner(256, 4, depth=2))

    calls = [chat(f"Question {at}", max_tokens=3 + at, stop=("e",)) for at in range(12)]
    async with serving(ahead("small"), ahead("large")) as engine:
        models = engine.answerer("small"), engine.answerer("large")
        together = await asyncio.gather(*(ask(model, c) for c in calls for model in models))
    async with serving(fake_lane(num_pages=256)) as engine:
        alone = [await ask(engine.answerer("small"), call) for call in calls]
    expected = [(said.text(), said.reasons, said.usage.completion_tokens) for said in alone]
    got = [(said.text(), said.reasons, said.usage.completion_tokens) for said in together]
    assert got[::2] == got[1::2] == expected
    for said in together:
        usage = said.usage
        made = usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
        assert usage.computed_tokens == made


async def test_a_step_wakes_the_event_loop_once_for_all_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wakes: list[int] = []
    hand_out = mailbox._hand_out

    def counted(mail: mailbox.Mail) -> None:
        wakes.append(sum(len(items) for _, items in mail))
        hand_out(mail)

    monkeypatch.setattr(mailbox, "_hand_out", counted)
    gate = Gate()
    lane = fake_lane(num_pages=256, runner=KvRunner(256, 4, gate))
    async with serving(lane) as engine:
        answerer = engine.answerer("small")
        asking = asyncio.gather(*(ask(answerer, chat(f"{i}", max_tokens=20)) for i in range(8)))
        await until(lambda: engine._loop.num_live == 8)
        gate.open()
        await asking
    assert len(wakes) <= lane.runner.steps  # type: ignore[attr-defined]
    assert max(wakes) >= 8


async def test_two_models_answer_side_by_side() -> None:
    lanes = fake_lane("small"), fake_lane("large")
    async with serving(*lanes) as engine:
        small, large = engine.answerer("small"), engine.answerer("large")
        said = await asyncio.gather(
            *(
                ask(model, chat(f"{at}", max_tokens=9))
                for at in range(4)
                for model in (small, large)
            )
        )
        assert set(engine.stats()) == {"small", "large"}
    assert [s.start.model for s in said] == ["small", "large"] * 4
    assert all(lane.runner.steps > 0 for lane in lanes)  # type: ignore[attr-defined]


# ----------------------------------------------------------------------- ending early


async def test_a_hang_up_in_mid_answer_frees_its_pages() -> None:
    gate = Gate(steps=2)
    async with serving(lane_with(gate)) as engine:
        answer = engine.answerer("small")(chat(max_tokens=200), Trail("r1"))
        assert isinstance(await anext(answer), Start)
        assert isinstance(await anext(answer), Delta)
        await answer.aclose()
        gate.open()
        await until(lambda: engine.stats()["small"].steps_total > 0)
        await until(lambda: engine.stats()["small"].running == 0)
        assert engine.stats()["small"].pages_running == 0
        assert engine.stats()["small"].generated_total < 20


async def test_a_cancelled_reader_frees_what_it_waited_for() -> None:
    gate = Gate(steps=1)
    async with serving(lane_with(gate)) as engine:
        task = asyncio.create_task(ask(engine.answerer("small"), chat(n=2, max_tokens=100)))
        await until(lambda: gate.steps._value == 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await until(lambda: engine.stats()["small"].steps_total > 0)
        await until(lambda: engine.stats()["small"].running == 0)
        assert engine.stats()["small"].generated_total < 20


async def test_a_deadline_in_the_queue_is_an_error_before_start() -> None:
    lane = fake_lane(limits=Limits(max_batched_tokens=64, max_running=1))
    async with serving(lane) as engine:
        answerer = engine.answerer("small")
        first = answerer(chat(max_tokens=200), Trail("r1"))
        await anext(first)
        late = Trail("r2", deadline=time.monotonic() - 0.001)
        with pytest.raises(DeadlineExceeded, match="r2"):
            await ask(answerer, chat(), late)
        await first.aclose()


async def test_a_deadline_in_mid_answer_ends_the_stream_with_an_error() -> None:
    gate = Gate(steps=1)
    async with serving(lane_with(gate)) as engine:
        trail = Trail("r1", deadline=time.monotonic() + 1.0)
        answer = engine.answerer("small")(chat(max_tokens=200), trail)
        assert isinstance(await anext(answer), Start)
        await asyncio.sleep(max(0.0, trail.remaining_s() or 0.0))
        gate.open()
        with pytest.raises(DeadlineExceeded):
            assert not [event async for event in answer if isinstance(event, End)]


async def test_a_reader_whose_event_loop_is_gone_is_dropped() -> None:
    gate = Gate(steps=2)
    async with serving(lane_with(gate)) as engine:

        def read_one_and_vanish() -> None:
            loop = asyncio.new_event_loop()
            answer = engine.answerer("small")(chat(max_tokens=240), Trail("r1"))
            loop.run_until_complete(anext(answer))
            loop.close()
            answers.append(answer)

        answers: list[object] = []
        await asyncio.to_thread(read_one_and_vanish)
        gate.open()
        await until(lambda: engine.stats()["small"].running == 0)
        assert engine.stats()["small"].generated_total < 240
        with pytest.raises(AttributeError):
            answers.pop().missing  # type: ignore[attr-defined]  # noqa: B018 — kept until here


@pytest.mark.parametrize("depth", [1, 2])
async def test_readers_who_come_and_go_at_any_moment_leave_nothing_behind(depth: int) -> None:
    limits = Limits(max_batched_tokens=32, max_running=6)
    lane = fake_lane(num_pages=48, limits=limits, runner=KvRunner(48, 4, depth=depth))
    rng = random.Random(5)
    async with serving(lane) as engine:
        answerer = engine.answerer("small")

        async def come_and_go(at: int) -> str:
            limit = time.monotonic() + rng.choice([0.02, 5.0])
            call = chat("ab" * rng.randrange(12), n=rng.choice([1, 2]), max_tokens=24)
            read = rng.randrange(40)
            trail = Trail(f"r{at}", f"t{at % 3}", deadline=limit)
            try:
                async with contextlib.aclosing(answerer(call, trail)) as answer:
                    async for event in answer:
                        read -= 1
                        if read == 0 or isinstance(event, End):
                            return type(event).__name__
            except DeadlineExceeded:
                return "late"
            return "cut"

        tasks = [asyncio.create_task(come_and_go(at)) for at in range(150)]
        for task in tasks[::7]:
            await asyncio.sleep(0.001)
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {"End", "Delta"} <= {said for said in ended if isinstance(said, str)}
    assert "cut" not in ended
    assert all(isinstance(said, str | asyncio.CancelledError) for said in ended)


# ----------------------------------------------------------------------- refusing


async def test_a_bad_call_is_refused_before_start() -> None:
    async with serving(fake_lane(num_pages=8)) as engine:
        answerer = engine.answerer("small")
        with pytest.raises(BadCall, match="KV memory"):
            await ask(answerer, chat(max_tokens=100))
        with pytest.raises(BadCall, match="does not know"):
            await ask(answerer, chat(extra='{"top_a":1}'))


async def test_a_full_queue_is_overload_with_a_time_to_come_back() -> None:
    gate = Gate()
    limits = Limits(max_batched_tokens=64, max_running=1, max_waiting=2)
    async with serving(lane_with(gate, limits=limits)) as engine:
        tasks = [
            asyncio.create_task(ask(engine.answerer("small"), chat(f"{at}", max_tokens=3)))
            for at in range(6)
        ]
        await until(lambda: engine._loop.num_live + sum(task.done() for task in tasks) == 6)
        gate.open()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert 3 <= len(refused) <= 4  # one runs or not yet, two wait
    for error in refused:
        assert isinstance(error, Overloaded)
        assert error.retry_after_s is not None


# ----------------------------------------------------------------------- breaking


async def test_a_broken_step_fails_its_requests_and_the_engine_goes_on() -> None:
    gate = Gate(steps=2)
    broken = threading.Event()
    reports: list[str] = []

    def maybe(chunks: list[Chunk]) -> None:
        gate(chunks)
        if broken.is_set():
            raise RuntimeError("no such kernel")

    lane = lane_with(maybe)
    async with serving(lane, report=lambda message, _: reports.append(message)) as engine:
        answerer = engine.answerer("small")
        answer = answerer(chat(max_tokens=200), Trail("r1"))
        await anext(answer)
        broken.set()
        gate.open()
        with pytest.raises(Failed, match=r"RuntimeError.*r1"):
            async for _ in answer:
                pass
        with pytest.raises(Failed, match=r"r2"):
            await ask(answerer, chat(), Trail("r2"))
        broken.clear()
        said = await ask(answerer, chat(max_tokens=5))
        assert said.usage.completion_tokens == 5
    assert len(reports) == 2
    assert "no such kernel" not in reports[0]


async def test_who_fails_with_others_is_told_its_own_id_only() -> None:
    gate = Gate()
    reports: list[str] = []

    def broken(chunks: list[Chunk]) -> None:
        gate(chunks)
        raise RuntimeError("no such kernel")

    runner = KvRunner(64, 4, broken, depth=2)
    lane = fake_lane(runner=runner)
    async with serving(lane, report=lambda message, _: reports.append(message)) as engine:
        answerer = engine.answerer("small")
        trails = [Trail(f"r-{name}", name) for name in ("ann", "bob", "cleo")]
        asking = [asyncio.create_task(ask(answerer, chat(t.tenant), t)) for t in trails]
        await until(lambda: engine._loop.num_live == 3)
        gate.open()
        failed = await asyncio.gather(*asking, return_exceptions=True)
    for trail, error in zip(trails, failed, strict=True):
        assert [t.id for t in trails if t.id in str(error)] == [trail.id]
    assert all(any(t.id in line for line in reports) for t in trails), "the log has them all"


async def test_a_step_that_fails_after_its_launch_takes_the_prefixes_along() -> None:
    gate = Gate(steps=20)
    broken = threading.Event()

    def read() -> None:
        if broken.is_set():
            broken.clear()
            raise RuntimeError("an illegal address")

    lane = fake_lane(runner=KvRunner(64, 4, gate, depth=2, after=read))
    async with serving(lane, report=lambda *_: None) as engine:
        answerer = engine.answerer("small")
        said = await ask(answerer, chat(max_tokens=9), Trail("r1"))
        answer = answerer(chat(max_tokens=200), Trail("r2"))
        await anext(answer)
        broken.set()
        gate.open()
        with pytest.raises(Failed, match=r"RuntimeError.*r2"):
            async for _ in answer:
                pass
        again = await ask(answerer, chat(max_tokens=9), Trail("r3"))
    assert lane.runner.recovered == 1  # type: ignore[attr-defined]
    assert again.usage.cached_tokens == 0, "a prefix that may hold anything was served"
    assert again.tokens() == said.tokens()


async def test_while_nothing_is_to_do_the_runner_gets_ready_and_a_call_goes_first() -> None:
    runner = KvRunner(64, 4)
    runner.to_prepare = 10**9
    engine = Engine({"small": fake_lane(runner=runner)})
    engine.start()
    await until(lambda: runner.to_prepare < 10**9)
    said = await ask(engine.answerer("small"), chat(max_tokens=3))
    assert len(said.tokens()) == 3
    runner.to_prepare = 2
    await until(lambda: runner.to_prepare < 0)
    await engine.stop()


async def test_what_breaks_while_getting_ready_fails_nobody() -> None:
    class Breaking(KvRunner):
        def prepare(self) -> bool:
            self.to_prepare -= 1
            if self.to_prepare == 0:
                raise RuntimeError("this kernel does not compile")
            return self.to_prepare > 0

    told: list[str] = []
    runner = Breaking(64, 4)
    runner.to_prepare = 3
    engine = Engine({"small": fake_lane(runner=runner)}, report=lambda what, _: told.append(what))
    engine.start()
    await until(lambda: bool(told))
    said = await ask(engine.answerer("small"), chat(max_tokens=3))
    assert len(said.tokens()) == 3
    await engine.stop()


async def test_a_lost_device_ends_the_engine_and_says_why() -> None:
    class Lost(KvRunner):
        def recover(self) -> None:
            raise RunnerLost("the GPU does not answer; restart the server")

    def die(chunks: list[Chunk]) -> None:
        raise RuntimeError("an illegal address")

    engine = Engine({"small": fake_lane(runner=Lost(64, 4, die))}, report=lambda *_: None)
    engine.start()
    with pytest.raises(Failed, match="RuntimeError"):
        await ask(engine.answerer("small"), chat())
    await until(lambda: not engine.alive)
    assert engine.problem == "the GPU does not answer; restart the server"
    with pytest.raises(Overloaded, match="restart the server"):
        await ask(engine.answerer("small"), chat())
    await engine.stop()


async def test_a_plan_that_breaks_while_nothing_runs_fails_who_is_next_in_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane = fake_lane()
    take = lane.scheduler._space.take

    def broken(sequence: Sequence, headroom: int) -> bool:
        if sequence.tenant == "cursed":
            raise RuntimeError("the books are wrong")
        return take(sequence, headroom=headroom)

    monkeypatch.setattr(lane.scheduler._space, "take", broken)
    reports: list[str] = []
    async with serving(lane, report=lambda message, _: reports.append(message)) as engine:
        answerer = engine.answerer("small")
        cursed = asyncio.wait_for(ask(answerer, chat(n=2), Trail("r1", "cursed")), PATIENCE_S)
        with pytest.raises(Failed, match=r"RuntimeError.*r1"):
            await cursed
        assert (await ask(answerer, chat(max_tokens=5))).usage.completion_tokens == 5
        await until(lambda: engine.stats()["small"].waiting == 0)
    assert len(reports) == 1


async def test_a_text_that_breaks_fails_its_own_request_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane = fake_lane()
    own_bytes = lane.text.pieces.own_bytes

    def broken(token: int) -> bytes:
        raise ValueError

    monkeypatch.setattr(lane.text.pieces, "own_bytes", broken)
    async with serving(lane, report=lambda *_: None) as engine:
        answerer = engine.answerer("small")
        asked_for_logprobs = ask(answerer, chat(logprobs=True, max_tokens=9), Trail("r1"))
        plain = ask(answerer, chat(max_tokens=9), Trail("r2"))
        failed, said = await asyncio.gather(asked_for_logprobs, plain, return_exceptions=True)
    assert isinstance(failed, Failed)
    assert not isinstance(said, BaseException)
    assert own_bytes(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_engine_leaves_nobody_waiting() -> None:
    gate = Gate(steps=3)

    def die(chunks: list[Chunk]) -> None:
        if not gate.steps.acquire(blocking=False):
            raise SystemExit

    engine = Engine({"small": lane_with(die)})
    engine.start()
    answerer = engine.answerer("small")
    tasks = [ask(answerer, chat(f"{at}", max_tokens=50), Trail(f"r{at}")) for at in range(3)]
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, Failed)
    with pytest.raises(Failed):
        await ask(answerer, chat())
    await until(lambda: not engine.alive)
    await engine.stop()


async def test_a_choice_that_breaks_takes_its_siblings_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane = fake_lane()

    def broken(token: int) -> bytes:
        raise ValueError

    monkeypatch.setattr(lane.text.pieces, "own_bytes", broken)
    async with serving(lane, report=lambda *_: None) as engine:
        with pytest.raises(Failed, match="ValueError"):
            await ask(engine.answerer("small"), chat("a", n=3, logprobs=True, max_tokens=9))


async def test_a_request_that_cannot_be_queued_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane = fake_lane()
    async with serving(lane, report=lambda *_: None) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(lane.scheduler, "_refuse_if_full", lambda *_: 1 / 0)
            with pytest.raises(Failed, match="ZeroDivisionError"):
                await ask(engine.answerer("small"), chat())
        assert (
            await ask(engine.answerer("small"), chat(max_tokens=2))
        ).usage.completion_tokens == 2


async def test_a_request_that_waits_for_pages_still_meets_its_deadline() -> None:
    lane = fake_lane(num_pages=16)
    pages = lane.tree.allocate(14)
    assert pages is not None
    async with serving(lane) as engine:
        trail = Trail("r1", deadline=time.monotonic() + 0.1)
        with pytest.raises(DeadlineExceeded):
            await ask(engine.answerer("small"), chat(max_tokens=30), trail)
        lane.tree.pages.free(pages)


async def test_finished_requests_are_not_kept_until_their_deadlines() -> None:
    async with serving(fake_lane()) as engine:
        for at in range(200):
            trail = Trail(f"r{at}", deadline=time.monotonic() + 3600)
            await ask(engine.answerer("small"), chat(max_tokens=1), trail)
        assert len(engine._loop._deadlines) < 100


async def test_stopping_lets_those_inside_finish_and_refuses_new_ones() -> None:
    gate = Gate(steps=3)
    lane = lane_with(gate)
    engine = Engine({"small": lane})
    engine.start()
    answerer = engine.answerer("small")
    inside = asyncio.create_task(ask(answerer, chat(max_tokens=40)))
    await until(lambda: lane.runner.steps > 2)  # type: ignore[attr-defined]
    stopping = asyncio.create_task(engine.stop(grace_s=PATIENCE_S))
    await asyncio.sleep(0.005)
    with pytest.raises(Overloaded, match="shutting down"):
        await ask(answerer, chat())
    gate.open()
    assert (await inside).usage.completion_tokens == 40
    await stopping
    assert not engine.alive


async def test_stopping_without_grace_fails_those_inside() -> None:
    lane = lane_with(lambda _: time.sleep(0.05))  # ten seconds for all of them
    engine = Engine({"small": lane})
    engine.start()
    inside = asyncio.create_task(ask(engine.answerer("small"), chat(max_tokens=200)))
    await until(lambda: lane.runner.steps > 2)  # type: ignore[attr-defined]
    await engine.stop()
    with pytest.raises(AnswerError, match="stopped"):
        await inside
    assert lane.tree.pages.num_running == 0


async def test_an_engine_that_never_started_can_be_stopped() -> None:
    await Engine({"small": fake_lane()}).stop()


async def test_the_stats_count_what_was_done() -> None:
    async with serving(fake_lane()) as engine:
        said = await ask(engine.answerer("small"), chat(max_tokens=7))
        await until(lambda: engine.stats()["small"].steps_total == 7)
        stats = engine.stats()["small"]
    assert stats.generated_total == 7
    assert stats.prefilled_total == said.usage.prompt_tokens
    assert stats.steps_total == 7
    assert stats.pages_free + stats.pages_cached == 64
    assert stats.tokens_per_s > 0


async def test_the_speed_falls_while_nothing_is_asked_and_the_thread_sleeps() -> None:
    late = 0.0
    async with serving(fake_lane(), clock=lambda: time.monotonic() + late) as engine:
        await ask(engine.answerer("small"), chat(max_tokens=7))
        await until(lambda: engine.stats()["small"].steps_total == 7)
        busy = engine.stats()["small"].tokens_per_s
        late = 60.0
        assert engine.stats()["small"].tokens_per_s < 0.01 * busy
