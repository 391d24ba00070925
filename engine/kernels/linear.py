"""x · Wᵀ + b with a weight that is laid out once for the machine that multiplies.

Problem: on a CPU a decode step is mostly matrix products of a few rows with every weight of the
model. `torch.nn.functional.linear` hands the weight over as it lies, and the library reorders it
into cache blocks on *every* call (bf16) or takes a generic path (fp32).

Choice: oneDNN reorders each weight once, at load, and multiplies with the reordered copy. All
products of a 42M-parameter Llama's twelve layers, two threads of a Zen 5: 1 row 3.3 → 1.4 ms in
bf16 and 7.4 → 2.1 ms in fp32; 32 rows 5.8 → 3.5 and 20.9 → 6.4 ms. It is what torch's own compiler
emits for frozen weights.

Rejected: oneDNN's fused post-operations (SiLU on the gate, product with the up projection): two
products of half the width cost more than one of the whole plus two cheap passes.

A row's result must not depend on how many rows stand beside it, or an answer changes with who else
asks. oneDNN picks its algorithm by the number of rows: a lone row of a 512 × 1408 product is summed
in another order than the same row among others, in bf16 and in fp32. So each shape is tried once,
when it is packed (`steady_rows`), and fewer rows than the least that agree with all larger numbers
are filled up with zeros. On a Zen 5 that is one product in four of the 42M model, from one row to
two: 5 to 7 µs a layer, 0.07 ms a step, and trying all shapes takes 0.1 to 0.3 s at load.

So an answer is bitwise the same alone and in company, greedy and seeded, while its prompt is
computed in the same pieces. What may still move a logit by roundings (0.004 after a prefix hit, 0.1
in chunks of 48; of 72 answers of 40 tokens, one changed a word):
- a prompt cut elsewhere: a prefix hit, a preemption (what decode had computed, prefill computes
  again), or prompts that together exceed a step, so that company decides where one is cut. The rows
  of a chunk attend in blocks, and a block's sums are ordered by the size of the chunk;
- another number of threads, machine or library; `plain` (fp16, or no oneDNN), which is not probed;
- a product of more than PROBED_ROWS rows, if its order were another (none was, up to 2,048).

Price: the reordered weight is opaque, so a tied embedding is held twice (12,288 × 512 in bf16:
13 MB), and the operator is private to torch: `plain` below is the twin that is always there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
"""[rows, in] → [rows, out]"""

PACK = "_reorder_linear_weight"

TYPICAL_ROWS = 32
"""For which oneDNN picks its block layout; measured to serve 1 to 256 rows equally well."""

PROBED_ROWS = (1, 2, 3, 4, 8, 16, 32, 64)
"""How many rows a shape is tried with: the last is what the others must agree with."""


def plain(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The readable twin, and the path where oneDNN is not."""

    def apply(x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)

    return apply


def packed(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """`weight` [out, in], bf16 or fp32, on the CPU. The result keeps a reordered copy of it."""
    multiply = _reordered(weight, bias)
    least = steady_rows(*weight.shape, weight.dtype, torch.get_num_threads())
    if least == 1:
        return multiply

    def apply(x: Tensor) -> Tensor:
        rows = len(x)
        if rows >= least:
            return multiply(x)
        filled = x.new_zeros(least, x.shape[1])
        filled[:rows] = x
        return multiply(filled)[:rows]

    return apply


def _reordered(weight: Tensor, bias: Tensor | None) -> Linear:
    mkldnn: Any = torch.ops.mkldnn
    blocks = mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
    multiply = mkldnn._linear_pointwise.default
    no_args: list[Any] = []

    def apply(x: Tensor) -> Tensor:
        result: Tensor = multiply(x, blocks, bias, "none", no_args, "")
        return result

    return apply


@functools.cache
def steady_rows(out: int, width: int, dtype: torch.dtype, _threads: int) -> int:
    """The least number of rows from which on a row's product is bitwise the same in all of
    PROBED_ROWS. 1: it never depends on the rows beside it. A few ms a shape.

    Every sum of the probe is exactly zero on paper, each term standing somewhere with the opposite
    sign, so what comes out is the rounding alone: another order of adding shows in nine numbers of
    ten, where sums of a usual size show it in one of four thousand.
    """
    weight, x = _cancelling(out, width, PROBED_ROWS[-1])
    multiply = _reordered(weight.to(dtype), None)
    x = x.to(dtype)
    whole = multiply(x)
    least = PROBED_ROWS[-1]
    for rows in reversed(PROBED_ROWS):
        if not torch.equal(multiply(x[:rows]), whole[:rows]):
            break
        least = rows
    return least if least < PROBED_ROWS[-1] else 1  # nothing agrees: filling up would not help


def _cancelling(out: int, width: int, rows: int) -> tuple[Tensor, Tensor]:
    """A weight [out, width] and an x [rows, width] whose products are sums of ±pairs, mixed."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(out, -(-width // 2), generator=generator)
    x = torch.randn(rows, half.shape[1], generator=generator)
    mixed = torch.randperm(width, generator=generator)
    return torch.cat((half, half), 1)[:, mixed], torch.cat((x, -x), 1)[:, mixed]


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest that this weight's device and type have."""
    fits = weight.device.type == "cpu" and can_pack(weight.dtype)
    return packed(weight, bias) if fits else plain(weight, bias)


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine reorders weights of this type: asked by doing it once, since oneDNN
    refuses bf16 on a CPU without AVX-512 (Zen 3 and older) only when it is handed a weight."""
    if dtype not in (torch.bfloat16, torch.float32) or not _has_reorder():
        return False
    try:
        _reordered(torch.zeros(16, 16, dtype=dtype), None)(torch.zeros(1, 16, dtype=dtype))
    except RuntimeError:
        return False
    return True


def _has_reorder() -> bool:
    built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    mkldnn = torch.ops.mkldnn
    return built and all(hasattr(mkldnn, name) for name in ("_linear_pointwise", PACK))
