"""x · Wᵀ for one row, with what stands around it: norm before, bias, residual or SiLU·mul behind.

Bound: memory. A decode step of one request is the weights read once; 15.0 GB of the 8B shape at
4.2 TB/s are 3.6 ms. What costs beyond that are the gaps between launches and the ramps at their
ends, so the norm, the residual sum and the activation are not launches of their own: a layer is
six kernels instead of ten, and each asks for its first weights before the one before has ended
(overlap.py).

    program = BLOCK_N rows of W, walked along K in fp32, the next block on its way; no tensor cores

The norm is a factor of the whole row, so it needs no pass of its own: Σx² grows beside the product,
x · weight is what is multiplied, and 1/√(mean + eps) comes at the end.

`residual` may be `out`: each number is read and written by one program. `x` must be neither.

Rejected: the same for 2 to 16 rows on the tensor cores. It reached 62 to 82 % of the bound on an
H100, cuBLAS 85 to 93 %, which is more than the separate norms and sums cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.overlap import await_last, let_next, overlapping


@dataclass(frozen=True, slots=True)
class Tile:
    """Numbers of a weight's block, and how it is walked."""

    n: int
    k: int
    warps: int


def best_tile(n: int, k: int, *, silu_mul: bool) -> Tile:
    """Measured on an H100: python -m bench.kernels --sweep skinny."""
    if silu_mul:
        return Tile(2, min(1024, triton.next_power_of_2(k)), 4)
    if k >= 4096:
        return Tile(8, 1024, 8)
    if n <= 1024 and k >= 2048:
        return Tile(4, 2048, 8)
    return Tile(4 if n * k >= 1 << 20 else 2, min(1024, triton.next_power_of_2(k)), 4)


@triton.jit
def weight_block(at, row_mask, mask, EVEN: tl.constexpr):
    if EVEN:
        block = tl.load(at)
    else:
        block = tl.load(at, mask=row_mask[:, None] & mask[None, :], other=0.0)
    return block


@triton.jit
def _one_row(
    x, weight, out, bias, norm, residual, n, k, eps,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, SILU: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < n
    columns = tl.arange(0, BLOCK_K)
    first = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    second = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    at = weight + rows.to(tl.int64)[:, None] * k + columns[None, :]
    next_w = weight_block(at, row_mask, columns < k, EVEN)
    if SILU:
        ups = at + n.to(tl.int64) * k
        next_up = weight_block(ups, row_mask, columns < k, EVEN)
    if OVERLAP:
        let_next()
        await_last()
    for start in tl.range(0, k, BLOCK_K):
        mask = start + columns < k
        w = next_w
        ahead = start + BLOCK_K + columns < k
        if start + BLOCK_K < k:
            next_w = weight_block(at + start + BLOCK_K, row_mask, ahead, EVEN)
        if SILU:
            up = next_up
            if start + BLOCK_K < k:
                next_up = weight_block(ups + start + BLOCK_K, row_mask, ahead, EVEN)
        value = tl.load(x + start + columns, mask=mask, other=0.0).to(tl.float32)
        if NORM:
            squares += value * value
            value *= tl.load(norm + start + columns, mask=mask, other=0.0).to(tl.float32)
        first += w.to(tl.float32) * value[None, :]
        if SILU:
            second += up.to(tl.float32) * value[None, :]
    result = tl.sum(first, axis=1)
    factor = 1.0
    if NORM:
        factor = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / k + eps)
    result *= factor
    if BIAS:
        result += tl.load(bias + rows, mask=row_mask, other=0.0).to(tl.float32)
    if SILU:
        more = tl.sum(second, axis=1) * factor
        if BIAS:
            more += tl.load(bias + n + rows, mask=row_mask, other=0.0).to(tl.float32)
        result = result / (1.0 + tl.exp(-result)) * more
    if RESIDUAL:
        result += tl.load(residual + rows, mask=row_mask, other=0.0).to(tl.float32)
    tl.store(out + rows, result.to(out.dtype.element_ty), mask=row_mask)


def skinny(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu_mul: bool = False,
    tile: Tile | None = None,
) -> None:
    """out = residual + act(norm(x) · weightᵀ + bias).

    x [1, in]; weight [n, in], dense; out, residual [1, n]. `norm` [in]: the weight of an RMSNorm
    with `eps`. With `silu_mul` weight and bias hold the gates and then the ups, and out is half as
    wide.
    """
    if len(x) != 1:
        raise ValueError(f"skinny multiplies one row, not {len(x)}: ask skinny_fits first")
    k = x.shape[1]
    n = len(weight) // 2 if silu_mul else len(weight)
    switches = {
        "BIAS": bias is not None,
        "NORM": norm is not None,
        "RESIDUAL": residual is not None,
        "SILU": silu_mul,
    }
    beside = tuple(weight if part is None else part for part in (bias, norm, residual))
    tile = tile or best_tile(n, k, silu_mul=silu_mul)
    _one_row[(triton.cdiv(n, tile.n),)](
        x, weight, out, *beside, n, k, eps, BLOCK_N=tile.n, BLOCK_K=tile.k,
        EVEN=n % tile.n == 0 and k % tile.k == 0, **switches, **overlapping(x.device),
        num_warps=tile.warps,
    )  # fmt: skip


def skinny_fits(rows: int, dtype: torch.dtype) -> bool:
    """Where it beats cuBLAS with its separate norms and sums (bench/kernels.py)."""
    return rows == 1 and dtype != torch.float32


def skinny_twin(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu_mul: bool = False,
) -> Tensor:
    if norm is not None:
        x = x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps) * norm
    product = x @ weight.T
    if bias is not None:
        product = product + bias
    if silu_mul:
        gate, up = product.chunk(2, dim=-1)
        product = gate * torch.sigmoid(gate) * up
    return product if residual is None else product + residual
