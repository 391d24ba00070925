"""x · Wᵀ for few rows, with what stands around it: norm before, bias, residual or SiLU·mul behind.

Bound: memory. A decode step of one request is the weights read once; 15.0 GB of the 8B shape at
4.2 TB/s are 3.6 ms. What costs beyond that are the gaps between launches and the ramps at their
ends, so the norm, the residual sum and the activation are not launches of their own: a layer is
five kernels instead of nine.

    one row:    program = BLOCK_N rows of W, walked along K in fp32, without tensor cores
    2–16 rows:  program = BLOCK_N rows of W × 16 rows of x on the tensor cores, pipelined

The norm is a factor of the whole row, so it needs no pass of its own: Σx² grows beside the product,
x · weight is what is multiplied, and 1/√(mean + eps) comes at the end. In fp32 throughout for one
row; x · weight is rounded once to the type of W for the tensor cores, as the normed x would be.

`residual` may be `out`: each number is read and written by one program. `x` must be neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_ROWS = 16


@dataclass(frozen=True, slots=True)
class Tile:
    """Numbers of a weight's block, and how it is walked."""

    n: int
    k: int
    warps: int
    stages: int


def one_row_tile(n: int, k: int) -> Tile:
    """Measured on an H100: see bench/kernels.py --sweep. Enough programs to fill every
    multiprocessor several times, each with 8 to 32 KB of weights in flight."""
    block_k = 1024 if k % 1024 == 0 else min(1024, triton.next_power_of_2(k))
    return Tile(4 if n * k >= 1 << 23 else 2, block_k, 4, 1)


def few_rows_tile(n: int, k: int) -> Tile:
    return Tile(64 if n >= 16384 else 32 if n >= 8192 else 16, 128 if k >= 128 else 64, 4, 5)


@triton.jit
def _one_row(
    x, weight, out, bias, norm, residual, n, k, eps,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, SILU: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < n
    columns = tl.arange(0, BLOCK_K)
    first = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    second = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    at = weight + rows.to(tl.int64)[:, None] * k + columns[None, :]
    for start in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        mask = start + columns < k
        if EVEN:
            w = tl.load(at + start)
        else:
            w = tl.load(at + start, mask=row_mask[:, None] & mask[None, :], other=0.0)
        if SILU:
            there = at + start + n.to(tl.int64) * k
            if EVEN:
                up = tl.load(there)
            else:
                up = tl.load(there, mask=row_mask[:, None] & mask[None, :], other=0.0)
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


@triton.jit
def _few_rows(
    x, weight, out, bias, norm, residual, m, n, k, eps, x_stride, out_stride, residual_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BIAS: tl.constexpr,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, SILU: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    row_mask = rows < m
    column_mask = columns < n
    first = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    at = weight + columns.to(tl.int64)[None, :] * k + inner[:, None]
    for start in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        mask = start + inner < k
        w = tl.load(at + start, mask=mask[:, None] & column_mask[None, :], other=0.0)
        value = tl.load(
            x + rows[:, None] * x_stride + start + inner[None, :],
            mask=row_mask[:, None] & mask[None, :],
            other=0.0,
        )
        if NORM:
            wide = value.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            scale = tl.load(norm + start + inner, mask=mask, other=0.0).to(tl.float32)
            value = (wide * scale[None, :]).to(w.dtype)
        first = tl.dot(value, w, first, input_precision=PRECISION)
        if SILU:
            there = at + start + n.to(tl.int64) * k
            up = tl.load(there, mask=mask[:, None] & column_mask[None, :], other=0.0)
            second = tl.dot(value, up, second, input_precision=PRECISION)
    if NORM:
        factor = (1.0 / tl.sqrt(squares / k + eps))[:, None]
        first *= factor
        second *= factor
    if BIAS:
        first += tl.load(bias + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    if SILU:
        if BIAS:
            second += tl.load(bias + n + columns, mask=column_mask, other=0.0).to(tl.float32)
        first = first / (1.0 + tl.exp(-first)) * second
    mask = row_mask[:, None] & column_mask[None, :]
    if RESIDUAL:
        old = residual + rows[:, None] * residual_stride + columns[None, :]
        first += tl.load(old, mask=mask, other=0.0).to(tl.float32)
    there = out + rows[:, None] * out_stride + columns[None, :]
    tl.store(there, first.to(out.dtype.element_ty), mask=mask)


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

    x [rows, in], rows up to MOST_ROWS; weight [n, in], dense; out, residual [rows, n]. `norm` [in]:
    the weight of an RMSNorm with `eps`. With `silu_mul` weight and bias hold the gates and then the
    ups, and out is half as wide.
    """
    rows, k = x.shape
    n = len(weight) // 2 if silu_mul else len(weight)
    switches = {
        "BIAS": bias is not None,
        "NORM": norm is not None,
        "RESIDUAL": residual is not None,
        "SILU": silu_mul,
    }
    beside = tuple(weight if part is None else part for part in (bias, norm, residual))
    if rows == 1:
        tile = tile or one_row_tile(n, k)
        _one_row[(triton.cdiv(n, tile.n),)](
            x, weight, out, *beside, n, k, eps, BLOCK_N=tile.n, BLOCK_K=tile.k,
            EVEN=n % tile.n == 0 and k % tile.k == 0, **switches, STAGES=tile.stages,
            num_warps=tile.warps,
        )  # fmt: skip
        return
    tile = tile or few_rows_tile(n, k)
    _few_rows[(triton.cdiv(n, tile.n),)](
        x, weight, out, *beside, rows, n, k, eps, x.stride(0), out.stride(0), beside[2].stride(0),
        BLOCK_M=MOST_ROWS, BLOCK_N=tile.n, BLOCK_K=tile.k, **switches,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", STAGES=tile.stages,
        num_warps=tile.warps,
    )  # fmt: skip


def skinny_fits(rows: int, _n: int, _k: int, dtype: torch.dtype) -> bool:
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
