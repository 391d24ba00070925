"""Lanes on a GPU for tests: any pool size, graphs and shared prefixes on or off."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from engine.build import make_lane
from engine.cuda.assemble import gpu_runner
from engine.cuda.weights import Product
from engine.lane import Lane
from engine.loading import load_decoder, read_checkpoint
from engine.pool import make_pool
from engine.scheduler import Limits
from engine.text import Text

PAGE = 16


def gpu_lane(
    directory: Path,
    name: str = "small",
    *,
    num_pages: int = 2048,
    limits: Limits | None = None,
    graphs: bool = True,
    share_prefixes: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> Lane:
    """A lane over a checkpoint, its weights and pages on the first GPU."""
    device = torch.device("cuda", 0)
    limits = limits or Limits(max_batched_tokens=2048, max_running=64)
    checkpoint = read_checkpoint(directory)
    decoder = load_decoder(checkpoint, dtype, device=device, product=Product)
    pool = make_pool(
        checkpoint.config, page_size=PAGE, num_pages=num_pages, dtype=dtype, device=str(device)
    )
    runner = gpu_runner(
        decoder,
        pool,
        max_tokens=limits.max_batched_tokens,
        max_running=limits.max_running,
        graphs=graphs,
        share_prefixes=share_prefixes,
    )
    lane = make_lane(
        name,
        checkpoint,
        Text.load(directory),
        runner,
        num_pages=num_pages,
        page_size=PAGE,
        limits=limits,
        clock=time.monotonic,
    )
    return replace(lane, stop_ids=frozenset())  # answers end where the test says
