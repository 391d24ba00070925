"""Where the time of one short pass of a workload goes (bench/engine_gpu.py).

    GPU busy     some kernel or copy ran; those of two streams at one time count once
    gaps         between the first and the last of them, and nothing ran: launches that came late
    around       before the first and behind the last
    host         the engine's thread worked, while the GPU did or not; with several models it looks
                 from one to the other and never waits in one place, so it is not told

Under CUPTI, which slows launches and small kernels: shares say where to look, the rows how fast it
is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch

from bench.engine_gpu_alone import Alone


@dataclass
class Where:
    """Where the time of one short pass went. Milliseconds."""

    what: str
    wall_ms: float
    busy_ms: float
    gaps_ms: float
    longest_gap_ms: float
    launches: int
    host_ms: float | None
    kernels: list[tuple[str, int, float]]
    """Name, count, ms; the costliest first."""


def covered(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(begin, end) of what some of these spans cover, in order and apart."""
    apart: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if apart and begin <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(apart[-1][1], end))
        else:
            apart.append((begin, end))
    return apart


@contextmanager
def profiled(
    label: str, found: list[Where], alone: Alone, *, kernels: bool = False
) -> Iterator[None]:
    """Note where the time goes while inside, and print it; `kernels`: with the costliest ones."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    lanes = list(alone.lanes)
    timed = alone.timed(lanes[0])
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        timed.waited_s, began = 0.0, time.perf_counter()
        yield
        host_s = time.perf_counter() - began - timed.waited_s
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    busy: dict[str, tuple[float, int]] = {}
    spans = []
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and event.device_time_total > 0:
            total, count = busy.get(event.name, (0.0, 0))
            busy[event.name] = (total + event.device_time_total, count + 1)
            spans.append((event.time_range.start, event.time_range.end))
    apart = covered(spans)
    gaps = [begin - end for (_, end), (begin, _) in pairwise(apart)]
    costs = sorted(((n, c, us / 1e3) for n, (us, c) in busy.items()), key=lambda one: -one[2])
    where = Where(
        label, wall * 1e3, sum(end - begin for begin, end in apart) / 1e3, sum(gaps) / 1e3,
        max(gaps, default=0.0) / 1e3, len(spans), host_s * 1e3 if len(lanes) == 1 else None,
        costs[:16],
    )  # fmt: skip
    found.append(where)
    show_where(where, kernels=kernels)


def show_where(where: Where, *, kernels: bool) -> None:
    wall = where.wall_ms
    host = "" if where.host_ms is None else f", host {where.host_ms / wall:.0%}"
    around = max(0.0, wall - where.busy_ms - where.gaps_ms)
    print(
        f"      {where.what}: {wall:.1f} ms, of which GPU busy {where.busy_ms / wall:.0%}"
        f" ({where.launches} launches), gaps {where.gaps_ms / wall:.0%}"
        f" (longest {where.longest_gap_ms:.2f} ms), around {around / wall:.0%}{host}",
        flush=True,
    )
    for name, count, spent in where.kernels if kernels else ():
        print(f"      {spent:9.2f} ms {count:6d} × {spent / count * 1e3:8.1f} µs  {name[:90]}")
