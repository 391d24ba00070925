"""What the kernel tests share: fresh random inputs, poisoned outputs, relative errors.

Inputs and combinations are new in each run. Its seed is printed at the end; SEED=that repeats it.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.pool import LayerKV

SEED = int(os.environ.setdefault("SEED", str(secrets.randbits(31))))
"""Of this run, and of processes that it starts."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (
    [torch.float16, torch.float32]
    if INTERPRETED
    else [torch.bfloat16, torch.float32, torch.float16]
)
"""The interpreter multiplies bf16 by its bits; fp16 takes the same path through a kernel."""

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1.5e-3}
"""‖out − ref‖ / ‖ref‖ of each row against float64: rounding of the result, and of a softmax's
weights."""


def grid(*axes: Sequence[Any], most: int = 32) -> list[tuple[Any, ...]]:
    """Combinations of the axes' values: on a GPU, where each is compiled, `most` drawn from all; in
    the interpreter, which is thousands of times slower, as many as show each value once."""
    if INTERPRETED:
        longest = max(len(axis) for axis in axes)
        return [tuple(axis[at % len(axis)] for axis in axes) for at in range(longest)]
    whole = list(itertools.product(*axes))
    return random.Random(SEED).sample(whole, min(most, len(whole)))


def relative_error(out: Tensor, reference: Tensor) -> float:
    """Of the worst row: all rows together, the long ones hide a short one. NaN where anything was
    left unwritten or came out wrong."""
    exact = reference.double().cpu()
    differences = (out.double().cpu() - exact).norm(dim=-1)
    return float((differences / exact.norm(dim=-1).clamp_min(1e-30)).max())


def assert_close(out: Tensor, reference: Tensor, dtype: torch.dtype) -> None:
    error = relative_error(out, reference)
    assert not math.isnan(error), (
        "something was not written, or a number that is not there was read"
    )
    assert error <= LIMITS[dtype], f"relative error {error:.2e} in {dtype}, SEED={SEED}"


def generator_of(seed: int) -> torch.Generator:
    """Another one in each run."""
    return torch.Generator().manual_seed((SEED * 1_000_003 + seed) % 2**63)


def poisoned(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class Heads:
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, eq=False)
class Paged:
    """Ragged contexts over shuffled pages. What no context covers is NaN."""

    kv: LayerKV
    tables: Tensor
    lengths: Tensor


def paged(
    lengths: list[int], page_size: int, shape: Heads, dtype: torch.dtype, device: str, seed: int
) -> Paged:
    generator = generator_of(seed)
    counts = [-(-length // page_size) for length in lengths]
    num_pages = sum(counts) + 3
    order = torch.randperm(num_pages - 1, generator=generator) + 1  # page 0 stays poisoned
    tables = torch.zeros(len(lengths), max(1, *counts), dtype=torch.int32)
    whole = (num_pages, page_size, shape.kv_heads, shape.head_dim)
    k, v = torch.full((2, *whole), float("nan"))
    used = 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        pages = order[used : used + count]
        used += count
        tables[row, :count] = pages.int()
        for pool in (k, v):
            flat = torch.full((count * page_size, *whole[2:]), float("nan"))
            flat[:length] = torch.randn(length, *whole[2:], generator=generator)
            pool[pages] = flat.view(count, *whole[1:])
    return Paged(
        layer_kv(k.to(device, dtype), v.to(device, dtype)),
        tables.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
    )


def layer_kv(k: Tensor, v: Tensor) -> LayerKV:
    slots = (k.shape[0] * k.shape[1], k.shape[2] * k.shape[3])
    return LayerKV(k, v, k.view(slots), v.view(slots))


def exact(kv: LayerKV) -> LayerKV:
    """The same numbers in float64."""
    return layer_kv(kv.k.double(), kv.v.double())


def randn(*shape: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator_of(seed)).to(device, dtype)
