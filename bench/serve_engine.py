"""The engine behind bench/serve_server.py: models of random weights on a GPU, or a fake one.

Where it runs, in the gateway's process or in its own, `build` first measures it alone, with the
load that the clients will make, and prints that as a line of JSON.

The fake has no GPU and the engine's own scheduler, tree, texts and thread: a step takes so long on
its "device", while the host burns so much of the interpreter for it, as launching does on a GPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.engine_gpu_alone import Alone, Timed, bench_text, make_gpu_lane
from bench.engine_gpu_shapes import LIMITS, PAGE, SEED, SHAPES
from bench.serve import EACH, NAME, PROMPT, STREAMS, WANTED
from engine.build import make_lane
from engine.engine import Engine
from engine.lane import Lane
from engine.loading import Checkpoint, read_config
from engine.sequence import Chunk, Sampled, SamplingParams
from gateway.catalog import ModelCard
from gateway.engine_backend import EngineBackend
from gateway.observe.logs import Log
from gateway.settings import Settings

FAKE = "fake"
FAKE_PAGES = 2 * STREAMS * (PROMPT + WANTED) // PAGE


@dataclass(frozen=True)
class FakeStep:
    """A step on its way. Seconds of `time.perf_counter()`."""

    drawn: list[Sampled]
    done_at: float

    def ready(self) -> bool:
        return time.perf_counter() >= self.done_at

    def result(self) -> list[Sampled]:
        time.sleep(max(0.0, self.done_at - time.perf_counter()))
        return self.drawn


class FakeRunner:
    """Takes time like a GPU's runner: `step_s` a step on the device, one after another, and
    `host_s` of this thread's processor time for each launch, under Python's lock."""

    depth = 2

    def __init__(self, step_s: float, host_s: float, vocab: int) -> None:
        self._step_s = step_s
        self._host_s = host_s
        self._free_at = 0.0
        self._rng = np.random.default_rng(SEED)
        self._vocab = vocab

    def launch(self, chunks: list[Chunk]) -> FakeStep:
        until = time.thread_time() + self._host_s
        while time.thread_time() < until:
            pass
        sequences = [chunk.sequence for chunk in chunks if chunk.samples]
        tokens = self._rng.integers(10, self._vocab, len(sequences)).tolist()
        self._free_at = max(self._free_at, time.perf_counter()) + self._step_s
        drawn = [
            Sampled(one, token, -0.5, ()) for one, token in zip(sequences, tokens, strict=True)
        ]
        return FakeStep(drawn, self._free_at)

    def prepare(self) -> bool:
        return False

    def recover(self) -> None:
        return


def make_fake_lane(step_ms: float, host_ms: float) -> Lane:
    config = read_config(SHAPES["tiny"])
    return make_lane(
        NAME,
        Checkpoint(Path(), config, (), SamplingParams(), {}, torch.float32),
        bench_text(config.vocab),
        Timed(FakeRunner(step_ms / 1e3, host_ms / 1e3, config.vocab)),
        num_pages=FAKE_PAGES,
        page_size=PAGE,
        limits=LIMITS,
        clock=time.monotonic,
    )


def measure_alone(lane: Lane) -> float:
    """Tokens per second of the closed loop without HTTP and event loop."""
    rng = np.random.default_rng(SEED)
    alone = Alone({NAME: lane})
    alone.timed(NAME).prepared.wait()

    def asked(count: int) -> list[tuple[np.ndarray, int]]:
        prompts = rng.integers(10, lane.vocab, (count, PROMPT)).astype(np.int32)
        return [(prompt, WANTED) for prompt in prompts]

    alone.in_turn(NAME, asked(2 * STREAMS), STREAMS)
    began = time.perf_counter()
    alone.in_turn(NAME, asked(EACH * STREAMS), STREAMS)
    speed = EACH * STREAMS * WANTED / (time.perf_counter() - began)
    alone.close()
    return speed


def build(settings: Settings, log: Log, progress: Callable[[str], None]) -> EngineBackend:
    """The model's path is its shape, or `fake/STEP_MS/HOST_MS`."""
    del log, progress
    path = settings.models[NAME].path
    assert path is not None
    shape, *times = path.parts
    if shape == FAKE:
        card, lane = "no card", make_fake_lane(*map(float, times))
    else:
        card = torch.cuda.get_device_name(0)
        lane = make_gpu_lane(NAME, shape, torch.device("cuda", 0), 0.9)
    told = {"card": card, "alone": measure_alone(lane)}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    engine = Engine({NAME: replace(lane, stop_ids=frozenset())})
    return EngineBackend(engine, {NAME: ModelCard(NAME, "0" * 64, lane.max_tokens, 0.5, 2.0)})
