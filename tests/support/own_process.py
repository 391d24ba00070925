"""Engines for tests that run in a process of their own (gateway/engine_process/)."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from engine.engine import Engine
from engine.lane import Lane
from engine.scheduler import Limits
from engine.sequence import Chunk, RunnerLost
from gateway.backend import CannotLoad
from gateway.catalog import ModelCard
from gateway.engine_backend import EngineBackend
from gateway.observe.logs import Log
from gateway.settings import Settings
from tests.support.engines import KvRunner, fake_lane

Progress = Callable[[str], None]

FAKES = "tests.support.own_process:fakes"
STEP_S = 0.02


class Losing(KvRunner):
    """Its device does not come back."""

    def recover(self) -> None:
        raise RunnerLost("the card does not compute any more")


def fakes(settings: Settings, log: Log, progress: Progress) -> EngineBackend:
    """small: as it should be. slow: 20 ms a step. full: takes nobody. broken, losing: each step
    fails; losing cannot go on after it."""
    log.info("fakes", settings=settings.engine.page_size)
    progress("making fakes")
    lanes = [*good(), fake_lane("broken", runner=KvRunner(64, 4, fail))]
    lanes += [fake_lane("full", limits=Limits(max_waiting=0))]
    lanes += [fake_lane("losing", runner=Losing(64, 4, fail))]
    sys.stderr.write("a word to stderr\n")
    sys.stderr.flush()
    engine = Engine({lane.name: lane for lane in lanes}, report=_reporting(log))
    return EngineBackend(engine, {lane.name: ModelCard(lane.name, "0" * 8) for lane in lanes})


def good() -> list[Lane]:
    slow = fake_lane("slow", runner=KvRunner(64, 4, lambda _: time.sleep(STEP_S)))
    return [fake_lane("small"), slow]


def fail(chunks: list[Chunk]) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _reporting(log: Log) -> Callable[[str, BaseException], None]:
    return lambda what, error: log.error("engine", what=what, exc_info=error)


def hanging(settings: Settings, log: Log, progress: Progress) -> EngineBackend:
    """stuck: its steps never end. long: they take two seconds."""
    stuck = fake_lane("stuck", runner=KvRunner(64, 4, lambda _: threading.Event().wait()))
    long = fake_lane("long", runner=KvRunner(64, 4, lambda _: time.sleep(2.0)))
    lanes = [fake_lane("small"), stuck, long]
    engine = Engine({lane.name: lane for lane in lanes}, report=_reporting(log))
    return EngineBackend(engine, {lane.name: ModelCard(lane.name, "0" * 8) for lane in lanes})


def on_a_card(settings: Settings, log: Log, progress: Progress) -> EngineBackend:
    """Chooses as the engine does. The machine's GPU is the file that $TEST_CARD names."""
    has_card = Path(os.environ["TEST_CARD"]).exists()
    if settings.engine.device == "cuda" and not has_card:
        raise CannotLoad("engine.device: cuda cannot be used: the card is full")
    device = "cuda" if has_card and settings.engine.device != "cpu" else "cpu"
    log.info("computing", device=device)
    cards = {"small": ModelCard("small", "0" * 8)}
    return EngineBackend(Engine({"small": fake_lane("small")}), cards, device=device)


def changing(settings: Settings, log: Log, progress: Progress) -> EngineBackend:
    """Other models each time."""
    lane = fake_lane("small")
    return EngineBackend(Engine({"small": lane}), {"small": ModelCard("small", str(os.getpid()))})


def refusing(settings: Settings, log: Log, progress: Progress) -> EngineBackend:
    raise CannotLoad("models.small.path: there is nothing; name a directory")


def dying(settings: Settings, log: Log, progress: Progress) -> EngineBackend:
    os.abort()
