"""Checkpoint directories → lanes, over one memory budget for keys and values.

Each model has its own pages (their sizes differ), cut from one budget: model i gets room for
weight_i · T tokens, with T as large as the budget allows. Equal weights mean that every model can
hold the same amount of conversation, whatever a token costs in it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.cuda.card import NoDevice, check_budget, dtype_on_gpu, kv_room, room_for
from engine.cuda.weights import Product
from engine.lane import Lane
from engine.loading import BrokenFile, Checkpoint, LoadError, load_decoder, read_checkpoint
from engine.models.decoder import Decoder
from engine.pool import PoolTooSmall, make_pool, num_pages_for, page_bytes
from engine.runner import CpuRunner, cpu_attention, dtype_for
from engine.scheduler import Limits, Scheduler
from engine.sequence import Runner
from engine.template import BadTemplate
from engine.text import BadTokenizer, Text
from radix import PageAllocator, RadixTree

CPU = torch.device("cpu")
MEMORY = Path("/proc/meminfo")


class NoRoom(LoadError):
    """The machine's memory does not hold what is asked of it."""


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
    kv_bytes: int | None,
    page_size: int = 16,
    limits: Limits | None = None,
    device: torch.device = CPU,
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Lane]:
    """Load every model; all are looked through before the first weight is read.

    `kv_bytes` None, on a GPU: what is free there beside the models. `progress` is told what is
    being loaded, in words for a person. Raises LoadError, PoolTooSmall or NoDevice.
    """
    limits = limits or Limits()
    plans = {name: _look(spec, page_size, device) for name, spec in specs.items()}
    kv_bytes = _budget(plans, kv_bytes, limits, device)
    shares = split_bytes(
        kv_bytes, {name: (specs[name].kv_weight, plan.page_bytes) for name, plan in plans.items()}
    )
    pages = {name: _pages(name, plan, page_size, shares[name]) for name, plan in plans.items()}
    lanes = {}
    for name, plan in plans.items():
        progress(f"loading {name} from {plan.checkpoint.directory}")
        try:
            lanes[name] = _lane(
                name,
                plan,
                num_pages=pages[name],
                page_size=page_size,
                limits=limits,
                device=device,
                clock=clock,
            )
        except torch.OutOfMemoryError as error:  # somebody else took what was free before
            raise NoDevice(
                f"{device} ran out of memory while {name} was loaded, though enough was free "
                "before: free the card of other programs, or lower engine.kv_memory_mib"
            ) from error
        except RuntimeError as error:  # torch has no class of its own for a CPU's memory
            if "allocate memory" not in str(error):
                raise
            raise NoRoom(
                f"the system refused the memory for {name}, {shares[name] >> 20:,} MiB of it for "
                "keys and values: lower engine.kv_memory_mib, or raise the process's limits"
            ) from error
    return lanes


def _budget(
    plans: Mapping[str, _Plan], kv_bytes: int | None, limits: Limits, device: torch.device
) -> int:
    """The bytes for keys and values that fit."""
    if device.type == "cpu":
        assert kv_bytes is not None, "on a CPU the caller says how much"
        _check_memory(plans, kv_bytes)
        return kv_bytes
    rooms = {
        name: room_for(
            plan.checkpoint.config, plan.dtype, limits.max_batched_tokens, limits.max_running
        )
        for name, plan in plans.items()
    }
    if kv_bytes is None:
        return kv_room(device, rooms)
    check_budget(device, rooms, kv_bytes)
    return kv_bytes


def _check_memory(plans: Mapping[str, _Plan], kv_bytes: int) -> None:
    """Raise NoRoom where weights, keys and values are more than the machine has to give. Linux
    hands out more than there is, and ends the process when it is used; other systems are asked
    nothing here."""
    free = memory_free()
    weights = sum(p.checkpoint.config.parameters * p.dtype.itemsize for p in plans.values())
    if free is None or weights + kv_bytes <= free:
        return
    raise NoRoom(
        f"{', '.join(plans)} need {weights >> 20:,} MiB, and engine.kv_memory_mib asks for "
        f"{kv_bytes >> 20:,} MiB more, but {free >> 20:,} MiB of memory are free: lower "
        f"engine.kv_memory_mib to {max(0, free - weights) >> 20}, use smaller models, or make room"
    )


def memory_free(told: Path = MEMORY) -> int | None:
    """Bytes that can be had without swapping; None where the system does not tell."""
    try:
        lines = told.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


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


def _look(spec: ModelSpec, page_size: int, device: torch.device) -> _Plan:
    checkpoint = read_checkpoint(spec.directory, context=spec.context)
    try:
        text = Text.load(spec.directory)
    except (BadTokenizer, BadTemplate) as error:
        raise BrokenFile(str(error)) from error
    fast = dtype_for if device.type == "cpu" else dtype_on_gpu
    dtype = spec.dtype or fast(checkpoint.dtype)
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
    device: torch.device,
    clock: Callable[[], float],
) -> Lane:
    if device.type == "cpu":
        decoder = load_decoder(plan.checkpoint, plan.dtype)
    else:
        decoder = load_decoder(plan.checkpoint, plan.dtype, device=device, product=Product)
    return make_lane(
        name,
        plan.checkpoint,
        plan.text,
        make_runner(decoder, page_size=page_size, num_pages=num_pages, limits=limits),
        num_pages=num_pages,
        page_size=page_size,
        limits=limits,
        clock=clock,
    )


def make_runner(decoder: Decoder, *, page_size: int, num_pages: int, limits: Limits) -> Runner:
    """A runner with a pool, where the decoder's weights are."""
    config, dtype = decoder.config, decoder.weights.embed.dtype
    device = decoder.weights.embed.device
    pool = make_pool(
        config, page_size=page_size, num_pages=num_pages, dtype=dtype, device=str(device)
    )
    if device.type == "cpu":
        return CpuRunner(
            decoder,
            pool,
            cpu_attention(config, pool),
            max_tokens=limits.max_batched_tokens,
            max_chunks=limits.max_running,
        )
    gpu = importlib.import_module("engine.cuda.assemble")  # Triton, which a CPU does without
    runner: Runner = gpu.gpu_runner(
        decoder, pool, max_tokens=limits.max_batched_tokens, max_running=limits.max_running
    )
    return runner
