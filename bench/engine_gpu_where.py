"""Where the time of one short pass goes on the GPU (bench/engine_gpu.py --profile)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from bench.engine_gpu_alone import Alone


@dataclass
class Where:
    """Where the time of one short pass went."""

    what: str
    wall_ms: float
    busy_ms: float
    """Of the GPU; the rest of the wall is launch gaps, and the host before and behind."""
    launches: int
    kernels: list[tuple[str, int, float]]
    """Name, count, ms; the costliest first."""


@contextmanager
def profiled(label: str, found: list[Where]) -> Iterator[None]:
    """Note where the GPU's time goes while inside."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        yield
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    busy: dict[str, tuple[float, int]] = {}
    for event in profiler.events():
        total, count = busy.get(event.name, (0.0, 0))
        if event.device_time_total > 0:
            busy[event.name] = (total + event.device_time_total, count + 1)
    kernels = sorted(((n, c, us / 1e3) for n, (us, c) in busy.items()), key=lambda one: -one[2])
    where = Where(
        label, wall * 1e3, sum(k[2] for k in kernels), sum(k[1] for k in kernels), kernels[:16]
    )
    found.append(where)
    print(
        f"-- {label}: wall {where.wall_ms:.1f} ms, GPU busy {where.busy_ms:.1f} ms"
        f" in {where.launches} launches",
        flush=True,
    )
    for name, count, spent in where.kernels:
        print(f"   {spent:9.2f} ms {count:6d} × {spent / count * 1e3:8.1f} µs  {name[:90]}")


def profile_rows(shape: str, ids: Callable[[int], np.ndarray], alone: Alone) -> list[Where]:
    """One short pass of each kind under the profiler; `ids` makes prompts."""
    found: list[Where] = []
    with profiled(f"{shape} single, 32 tokens", found):
        alone.answer([(shape, ids(128), 32)])
    with profiled(f"{shape} batch 128, 16 tokens", found):
        alone.answer([(shape, ids(512), 16) for _ in range(128)])
    common = ids(2048)
    with profiled(f"{shape} shared 128, 16 tokens", found):
        alone.answer([(shape, np.concatenate((common, ids(64))), 16) for _ in range(128)])
    prompt = ids(8192)
    with profiled(f"{shape} 8k cold", found):
        alone.first_token(shape, prompt)
    with profiled(f"{shape} 8k warm", found):
        alone.first_token(shape, prompt)
    return found
