"""The engine in a process of its own: it answers, refuses and ends as one in the gateway's does,
and what happens to its process happens to no other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import pytest
import pytest_asyncio

from engine.contract import (
    BadCall,
    Call,
    DeadlineExceeded,
    Delta,
    Failed,
    Overloaded,
    Sampling,
    Trail,
)
from engine.engine import Engine
from gateway.backend import CannotLoad
from gateway.engine_process.backend import OwnProcess
from gateway.engine_process.watch import Bounds
from gateway.observe.logs import LineWriter, build_log
from gateway.settings import Engine as EngineSettings
from gateway.settings import Settings
from tests.support.engines import Answered, ask, chat
from tests.support.own_process import FAKES, good

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
PATIENCE_S = 60.0


@dataclass(frozen=True)
class House:
    """An engine's process, and what it and the gateway logged."""

    process: OwnProcess
    lines: BytesIO

    def logged(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines.getvalue().splitlines()]

    async def ask(self, call: Call, model: str = "small", trail: Trail | None = None) -> Answered:
        return await ask(self.process.answerers[model], call, trail)


def load(
    builder: str,
    told: Callable[[str], None] = lambda _: None,
    *,
    engine: EngineSettings = EngineSettings(),  # noqa: B008 - frozen
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
) -> House:
    lines = BytesIO()
    log = build_log(LineWriter(lines, every_s=0.01), "info", as_json=True)
    settings = Settings(engine=engine)
    return House(OwnProcess(settings, log, told, builder=builder, bounds=bounds), lines)


async def until(holds: Callable[[], object], what: str) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, what
        await asyncio.sleep(0.01)


def runs(pid: int) -> bool:
    """A process that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house() -> AsyncIterator[House]:
    one = await asyncio.to_thread(load, FAKES)
    await one.process.start()
    yield one
    pid = one.process.pid
    await one.process.stop()
    assert not runs(pid)


@contextlib.asynccontextmanager
async def shared() -> AsyncIterator[Engine]:
    engine = Engine({lane.name: lane for lane in good()})
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


# ----------------------------------------------------------------------- it answers alike


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 1},
        {"max_tokens": 20, "n": 3, "sampling": Sampling(temperature=1.0, seed=3)},
        {"max_tokens": 20, "logprobs": True, "top_logprobs": 2},
        {"max_tokens": 40, "stop": ("e", "zz")},
        {"kind": "text", "messages": (), "prompt": (5, 6, 7), "max_tokens": 5},
    ],
)
async def test_an_answer_is_what_an_engine_in_this_process_gives(
    house: House, fields: dict[str, object]
) -> None:
    call = chat("What is it?", **fields)
    async with shared() as engine:
        here = await ask(engine.answerer("small"), call)
    there = await house.ask(call)
    for index in range(call.n):
        assert there.text(index) == here.text(index)
        assert there.tokens(index) == here.tokens(index)
        assert there.logprobs(index) == here.logprobs(index)
    assert there.reasons == here.reasons
    assert there.usage.completion_tokens == here.usage.completion_tokens
    assert there.start.model == there.start.origin == "small"
    assert set(there.trail.spans_ms) == {"queue", "prefill", "decode"}
    assert all(span >= 0 for span in there.trail.spans_ms.values())


async def test_a_prompt_that_was_seen_before_is_cached_over_there(house: House) -> None:
    call = chat("The same question, twice and no more than that", max_tokens=2)
    first, again = await house.ask(call), await house.ask(call)
    assert again.usage.cached_tokens > first.usage.cached_tokens
    assert again.usage.computed_tokens < first.usage.computed_tokens


@pytest.mark.parametrize(
    "call",
    [
        chat("Hello", extra='{"beam":1}'),
        chat("Hello", tools="[{}]"),
        chat("Hello", top_logprobs=21),
        chat("Hello " * 600),
        chat("Hello", max_tokens=100_000),
        chat("", kind="text", messages=(), prompt=()),
        chat("", kind="text", messages=(), prompt=(384,)),
    ],
)
async def test_a_refusal_is_worded_as_in_this_process(house: House, call: Call) -> None:
    async with shared() as engine:
        with pytest.raises(BadCall) as here:
            await ask(engine.answerer("small"), call)
    with pytest.raises(BadCall) as there:
        await house.ask(call)
    assert vars(there.value) == vars(here.value)


async def test_a_full_engine_says_so(house: House) -> None:
    with pytest.raises(Overloaded, match="waiting"):
        await house.ask(chat("Hello"), "full")


async def test_a_deadline_holds_over_there(house: House) -> None:
    trail = Trail("late", deadline=time.monotonic() + 0.3)
    with pytest.raises(DeadlineExceeded, match="late"):
        await house.ask(chat("Hello", max_tokens=200), "slow", trail)


async def test_who_leaves_frees_pages_and_others_are_answered(house: House) -> None:
    answer = house.process.answerers["slow"](chat("Hello", max_tokens=200), Trail("r1"))
    async with contextlib.aclosing(answer):
        async for event in answer:
            if isinstance(event, Delta):
                break
        await until(lambda: house.process.states()["slow"].running == 1, "it runs")
        assert house.process.states()["slow"].pages["running"] > 0
    await until(lambda: house.process.states()["slow"].pages["running"] == 0, "pages are free")
    assert house.process.states()["slow"].running == 0
    assert (await house.ask(chat("Hello", max_tokens=3), "slow")).text()


async def test_a_call_on_its_way_counts_as_waiting(house: House) -> None:
    await until(lambda: not house.process.states()["slow"].running, "it is idle")
    task = asyncio.create_task(house.ask(chat("Hello", max_tokens=2), "slow"))
    await asyncio.sleep(0)
    assert house.process.states()["slow"].waiting == 1
    await task
    assert house.process.states()["slow"].waiting == 0


async def test_many_at_a_time_do_not_mix(house: House) -> None:
    calls = [chat(f"Number {at}", max_tokens=12) for at in range(40)]
    async with shared() as engine:
        here = [await ask(engine.answerer("small"), call) for call in calls]
    there = await asyncio.gather(*(house.ask(call) for call in calls))
    assert [one.tokens() for one in there] == [one.tokens() for one in here]


# ------------------------------------------------------------------------------- it fails


async def test_a_broken_step_fails_its_requests_by_id_and_is_logged_here(house: House) -> None:
    pid = house.process.pid
    with pytest.raises(Failed, match="request mine") as failed:
        await house.ask(chat("Hello"), "broken", Trail("mine"))
    assert "CUDA" not in failed.value.message
    assert (await house.ask(chat("Hello"))).text()
    assert house.process.pid == pid

    def told() -> list[dict[str, object]]:
        return [one for one in house.logged() if "mine" in str(one.get("what"))]

    await until(told, "it is logged")
    (line,) = told()
    assert (line["level"], line["process"]) == ("error", "engine")
    assert "RuntimeError" in str(line["exception"])


async def test_its_log_and_its_stderr_come_here(house: House) -> None:
    lines = house.logged()
    assert [one["settings"] for one in lines if one["event"] == "fakes"][:1] == [16]
    await until(lambda: any(one.get("line") == "a word to stderr" for one in house.logged()), "")


async def outlive(house: House, end: Callable[[], object]) -> list[Answered | BaseException]:
    """What callers get when `end` ends the process; returns when it serves again."""
    pid = house.process.pid
    answer = house.process.answerers["slow"](chat("Hello", max_tokens=200), Trail("begun"))
    await anext(answer)
    waiting = [
        asyncio.create_task(house.ask(chat("Hello", max_tokens=200), "slow", Trail(f"w{at}")))
        for at in range(5)
    ]
    await asyncio.sleep(0.1)
    end()
    with pytest.raises(Failed) as cut:
        async for _ in answer:
            pass
    got = [cut.value, *await asyncio.gather(*waiting, return_exceptions=True)]
    await until(lambda: house.process.problem() or house.process.pid != pid, "it is noticed")
    if house.process.problem():
        with pytest.raises(Overloaded, match="started again") as refused:
            await house.ask(chat("Hello"))
        assert refused.value.retry_after_s
    await until(lambda: house.process.problem() is None, "it serves again")
    assert house.process.pid != pid
    assert (await house.ask(chat("Hello"))).text()
    assert house.process.lost() is None
    return got


async def test_a_killed_process_fails_its_requests_and_is_started_again(house: House) -> None:
    got = await outlive(house, lambda: os.kill(house.process.pid, signal.SIGKILL))
    assert {type(error) for error in got} == {Failed}
    asked = ["begun", *(f"w{at}" for at in range(5))]
    for error, own in zip(got, asked, strict=True):  # and nobody else's, who may be a stranger
        assert [name for name in asked if name in str(error)] == [own]
    assert "try again" in str(got[0])
    (line,) = [one for one in house.logged() if one.get("how") == "signal SIGKILL"]
    assert str(line["requests"]).split(", ") == sorted(asked)
    assert house.process.states()["slow"].running == 0


async def test_what_a_killed_process_had_sent_is_paid_for(house: House) -> None:
    call = chat("Something to say at some length", max_tokens=200, n=2)
    whole = await house.ask(replace(call, max_tokens=1), "slow")
    trail, tokens = Trail("cut"), 0

    async def listen() -> None:
        nonlocal tokens
        async for event in house.process.answerers["slow"](call, trail):
            if isinstance(event, Delta):
                tokens += len(event.token_ids)
                if tokens > 10:
                    os.kill(house.process.pid, signal.SIGKILL)

    with pytest.raises(Failed, match="process ended"):
        await listen()
    (waste,) = trail.wasted
    assert waste.usage.prompt_tokens == whole.usage.prompt_tokens > 0
    assert waste.usage.completion_tokens == tokens > 10
    assert waste.usage.cached_tokens <= whole.usage.prompt_tokens
    assert waste.usage.computed_tokens >= tokens
    await until(lambda: house.process.problem() is None, "it serves again")


async def test_a_stopped_process_is_noticed_and_another_started() -> None:
    bounds = Bounds(silent_s=3.0)
    one = await asyncio.to_thread(load, FAKES, bounds=bounds)
    await one.process.start()
    await asyncio.sleep(2 * bounds.silent_s)  # an idle one beats
    began = time.monotonic()
    got = await outlive(one, lambda: os.kill(one.process.pid, signal.SIGSTOP))
    assert {type(error) for error in got} == {Failed}
    assert time.monotonic() - began < PATIENCE_S
    (line,) = [one for one in one.logged() if "how" in one]
    assert (line["how"], "nothing came" in str(line["why"])) == ("signal SIGKILL", True)
    await one.process.stop()


async def test_a_step_that_never_ends_is_noticed_and_a_long_one_waited_for() -> None:
    one = await asyncio.to_thread(
        load,
        "tests.support.own_process:hanging",
        engine=EngineSettings(step_timeout_s=4.0),
        bounds=Bounds(silent_s=1.5),
    )
    await one.process.start()
    pid = one.process.pid
    assert (await one.ask(chat("Hello", max_tokens=4), "long")).text()  # 8 s, 2 a step
    assert one.process.pid == pid
    with pytest.raises(Failed, match="request mine"):
        await one.ask(chat("Hello"), "stuck", Trail("mine"))
    assert "hangs" in str(one.process.problem())
    await until(lambda: one.process.problem() is None, "it serves again")
    assert (await one.ask(chat("Hello"))).text()
    (line,) = [one for one in one.logged() if "how" in one]
    assert "a step of stuck hangs" in str(line["why"])
    task = asyncio.create_task(one.ask(chat("Hello"), "stuck"))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await one.process.stop()
    assert time.monotonic() - began < 8.0  # a drain's 30 s, and this, are less than 40
    with pytest.raises(Failed, match="has stopped"):
        await task
    assert not runs(one.process.pid)


async def test_a_lost_device_takes_only_the_engines_process_along(house: House) -> None:
    tasks: list[asyncio.Task[object]] = []

    def lose() -> None:
        tasks.append(asyncio.create_task(house.ask(chat("Hello"), "losing", Trail("loser"))))

    got = await outlive(house, lose)
    assert all(isinstance(error, Failed) for error in got)
    (failed,) = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(failed, Failed)
    assert "loser" in failed.message
    why = [one["why"] for one in house.logged() if "why" in one][-1]
    assert why == "the card does not compute any more"


async def test_a_start_that_fails_is_not_the_last(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python is away for a moment, as in an upgrade: each try fails until it is back."""
    with monkeypatch.context() as away:
        away.setattr(sys, "executable", "/nonexistent/python")
        os.kill(house.process.pid, signal.SIGKILL)

        def failed() -> int:
            return sum("could not be started" in str(one.get("what")) for one in house.logged())

        await until(lambda: failed() >= 2, "it is tried again")
        assert "started again" in str(house.process.problem())
        with pytest.raises(Overloaded, match="started again"):
            await house.ask(chat("Hello"))
    await until(lambda: house.process.problem() is None, "it serves again")
    assert (await house.ask(chat("Hello"))).text()


# --------------------------------------------------------------------- it begins and ends


async def test_what_cannot_be_loaded_is_told_in_the_operators_words() -> None:
    with pytest.raises(CannotLoad, match="name a directory"):
        await asyncio.to_thread(load, "tests.support.own_process:refusing")


async def test_a_process_that_ends_while_it_loads_is_no_riddle() -> None:
    with pytest.raises(CannotLoad, match=r"signal SIGABRT.*the log"):
        await asyncio.to_thread(load, "tests.support.own_process:dying")


async def test_other_models_after_a_restart_are_not_served_as_the_old_ones() -> None:
    one = await asyncio.to_thread(load, "tests.support.own_process:changing")
    await one.process.start()
    os.kill(one.process.pid, signal.SIGKILL)
    await until(one.process.lost, "it is noticed")
    assert "have changed" in str(one.process.problem())
    with pytest.raises(Overloaded):
        await one.ask(chat("Hello"))
    await one.process.stop()
    assert not runs(one.process.pid)


async def test_what_computed_on_a_gpu_comes_back_on_one_or_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "card"
    card.touch()
    monkeypatch.setenv("TEST_CARD", str(card))
    one = await asyncio.to_thread(load, "tests.support.own_process:on_a_card")
    await one.process.start()
    card.unlink()
    os.kill(one.process.pid, signal.SIGKILL)

    def refused() -> int:
        return sum("card is full" in str(line.get("why")) for line in one.logged())

    await until(lambda: refused() >= 2, "it tries again and again")
    assert "started again: engine.device: cuda cannot be used" in str(one.process.problem())
    with pytest.raises(Overloaded):
        await one.ask(chat("Hello"))
    card.touch()
    await until(lambda: one.process.problem() is None, "it serves again")
    assert (await one.ask(chat("Hello"))).text()
    assert [line["device"] for line in one.logged() if "device" in line] == ["cuda", "cuda"]
    await one.process.stop()


async def test_what_computed_on_a_cpu_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_CARD", str(tmp_path / "card"))
    one = await asyncio.to_thread(load, "tests.support.own_process:on_a_card")
    await one.process.start()
    (tmp_path / "card").touch()
    pid = one.process.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: one.process.pid != pid and not one.process.problem(), "it serves again")
    assert [line["device"] for line in one.logged() if "device" in line] == ["cpu", "cpu"]
    await one.process.stop()


async def test_stopping_lets_nobody_wait() -> None:
    told: list[str] = []
    one = await asyncio.to_thread(load, FAKES, told.append)
    assert told == ["making fakes"]
    await one.process.start()
    task = asyncio.create_task(one.ask(chat("Hello", max_tokens=200), "slow"))
    await until(lambda: one.process.states()["slow"].running, "it runs")
    await one.process.stop()
    with pytest.raises(Failed, match="has stopped"):
        await task
    with pytest.raises(Overloaded, match="shutting down"):
        await one.ask(chat("Hello"))
    assert not runs(one.process.pid)


STARTED = """
import sys
from gateway.engine_process.backend import OwnProcess
from gateway.observe.logs import LineWriter, build_log
from gateway.settings import Settings

log = build_log(LineWriter(sys.stderr.buffer), "info", as_json=True)
process = OwnProcess(Settings(), log, lambda _: None, builder=sys.argv[1])
print(process.pid, "torch" in sys.modules, flush=True)
sys.stdin.read()
"""


async def test_a_gateway_that_is_killed_leaves_no_engine_behind_and_needed_no_torch() -> None:
    def live_and_die() -> tuple[int, str]:
        root = Path(__file__).resolve().parents[3]
        with subprocess.Popen(
            [sys.executable, "-c", STARTED, FAKES],
            cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(root)},
        ) as gateway:  # fmt: skip
            assert gateway.stdout is not None
            pid, torch = gateway.stdout.readline().decode().split()
            assert runs(int(pid))
            gateway.kill()
        return int(pid), torch

    pid, torch = await asyncio.to_thread(live_and_die)
    await until(lambda: not runs(pid), "the engine's process ends")
    assert torch == "False"
