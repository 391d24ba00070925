"""Rows of bench/engine_gpu.py, and the one that is measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.engine_gpu_alone import Alone, make_gpu_lane
from bench.engine_gpu_shapes import GOALS, SEED, SHAPES, VLLM


@dataclass
class Row:
    shape: str
    name: str
    value: float
    unit: str
    spread: tuple[float, float]
    bound: float
    share: float
    """Of the bound: 1 is the bound itself."""
    vllm_h200: float | None
    goal_h200: float | None
    steps: int
    step_ms: float
    host_us: float
    """A step's time in which the engine's thread worked, not waited for the GPU."""


def show(row: Row) -> None:
    reference = "" if row.vllm_h200 is None else f"  vLLM(H200) {row.vllm_h200:8,.0f}"
    goal = "" if row.goal_h200 is None else f"  goal(H200) {row.goal_h200:8,.0f}"
    print(
        f"{row.shape:>5} {row.name:<13} {row.value:9,.1f} {row.unit:<5}"
        f" ({row.spread[0]:,.1f}–{row.spread[1]:,.1f})  bound {row.bound:9,.1f}"
        f" share {row.share:5.0%}{reference}{goal}"
        f"  steps {row.steps} × {row.step_ms:.3f} ms, host {row.host_us:.0f} µs of it",
        flush=True,
    )


def first_answer(shape: str) -> Row:
    """The first answer of this process, which has not touched the GPU before."""
    alone = Alone({shape: make_gpu_lane(shape, shape, torch.device("cuda", 0), 0.9)})
    vocab = int(SHAPES[shape]["vocab_size"])
    prompt = np.random.default_rng(SEED).integers(10, vocab, 128).astype(np.int32)
    alone.answer([(shape, prompt, 16)])
    taken = process_age_s()
    goal = GOALS.get(shape, {}).get("start")
    vllm = VLLM.get(shape, {}).get("start")
    row = Row(shape, "start", taken, "s", (taken, taken), 0.0, 0.0, vllm, goal, 0, 0.0, 0.0)
    alone.close()
    return row


def start_anew(shape: str) -> Row:
    """The same of a new process. It has the card to itself: call it before the GPU is used here."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "start.json"
        command = [
            sys.executable, "-m", "bench.engine", "--shape", shape, "--rows", "start",
            "--json", str(told),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (row,) = json.loads(told.read_text())["rows"]
    return Row(**{**row, "spread": tuple(row["spread"])})


def process_age_s() -> float:
    """Seconds since this process was started."""
    started = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    ticks = 100.0
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - started / ticks
