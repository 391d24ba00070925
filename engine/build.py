"""Checkpoint directories → lanes, over one memory budget for keys and values.

Each model has its own pages (their sizes differ), cut from one budget: model i gets room for
weight_i · T tokens, with T as large as the budget allows. Equal weights mean that every model can
hold the same amount of conversation, whatever a token costs in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.lane import Lane
from engine.loading import BrokenFile, Checkpoint, load_decoder, read_checkpoint
from engine.pool import PoolTooSmall, make_pool, num_pages_for, page_bytes
from engine.runner import CpuRunner, cpu_attention, dtype_for
from engine.scheduler import Limits, Scheduler
from engine.sequence import Runner
from engine.template import BadTemplate
from engine.text import BadTokenizer, Text
from radix import PageAllocator, RadixTree


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model to serve. `dtype` None: what runner.dtype_for says. `kv_weight`: its part of the KV
    memory, in tokens, beside the other models'. `context` lowers the context length."""

    directory: Path
    dtype: torch.dtype | None = None
    kv_weight: float = 1.0
    context: int | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """A model that has been looked through, before anything is loaded."""

    checkpoint: Checkpoint
    text: Text
    dtype: torch.dtype
    page_bytes: int


def build_lanes(
    specs: Mapping[str, ModelSpec],
    *,
    kv_bytes: int,
    page_size: int = 16,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Lane]:
    """Load every model; all are looked through before the first weight is read.

    `progress` is told what is being loaded, in words for a person. Raises LoadError or
    PoolTooSmall.
    """
    limits = limits or Limits()
    plans = {name: _look(spec, page_size) for name, spec in specs.items()}
    shares = split_bytes(
        kv_bytes, {name: (specs[name].kv_weight, plan.page_bytes) for name, plan in plans.items()}
    )
    pages = {name: _pages(name, plan, page_size, shares[name]) for name, plan in plans.items()}
    lanes = {}
    for name, plan in plans.items():
        progress(f"loading {name} from {plan.checkpoint.directory}")
        lanes[name] = _lane(
            name,
            plan,
            num_pages=pages[name],
            page_size=page_size,
            limits=limits,
            clock=clock,
        )
    return lanes


def split_bytes(kv_bytes: int, models: Mapping[str, tuple[float, int]]) -> dict[str, int]:
    """Bytes for each model; `models` gives weight (of tokens) and bytes a page."""
    total = sum(weight * size for weight, size in models.values())
    return {name: int(kv_bytes * weight * size / total) for name, (weight, size) in models.items()}


def make_lane(
    name: str,
    checkpoint: Checkpoint,
    text: Text,
    runner: Runner,
    *,
    num_pages: int,
    page_size: int,
    limits: Limits,
    clock: Callable[[], float],
) -> Lane:
    """A lane over a runner whose pool has `num_pages` pages."""
    tree = RadixTree(PageAllocator(num_pages), page_size)
    return Lane(
        name=name,
        text=text,
        tree=tree,
        scheduler=Scheduler(tree, limits, clock),
        runner=runner,
        context=checkpoint.config.context,
        vocab=checkpoint.config.vocab,
        stop_ids=frozenset(t for t in (*checkpoint.eos, text.eos) if t is not None),
        defaults=checkpoint.defaults,
    )


def _look(spec: ModelSpec, page_size: int) -> _Plan:
    checkpoint = read_checkpoint(spec.directory, context=spec.context)
    try:
        text = Text.load(spec.directory)
    except (BadTokenizer, BadTemplate) as error:
        raise BrokenFile(str(error)) from error
    dtype = spec.dtype or dtype_for(checkpoint.dtype)
    return _Plan(checkpoint, text, dtype, page_bytes(checkpoint.config, page_size, dtype))


def _pages(name: str, plan: _Plan, page_size: int, kv_bytes: int) -> int:
    try:
        return num_pages_for(plan.checkpoint.config, page_size, plan.dtype, kv_bytes)
    except PoolTooSmall as error:
        raise PoolTooSmall(f"{name}: {error}") from error


def _lane(
    name: str,
    plan: _Plan,
    *,
    num_pages: int,
    page_size: int,
    limits: Limits,
    clock: Callable[[], float],
) -> Lane:
    config = plan.checkpoint.config
    decoder = load_decoder(plan.checkpoint, plan.dtype)
    pool = make_pool(config, page_size=page_size, num_pages=num_pages, dtype=plan.dtype)
    runner = CpuRunner(
        decoder,
        pool,
        cpu_attention(config, pool),
        max_tokens=limits.max_batched_tokens,
        max_chunks=limits.max_running,
    )
    return make_lane(
        name,
        plan.checkpoint,
        plan.text,
        runner,
        num_pages=num_pages,
        page_size=page_size,
        limits=limits,
        clock=clock,
    )
