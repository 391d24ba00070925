"""RMSNorm, alone and with the residual sum before it, one program a row.

Bound: memory. A row of `hidden` numbers is read once and written once (with the residual: two read,
two written); 128 rows of 4,096 in bf16 are 4 MB, a microsecond, so what counts is that the two
steps are one launch. Sums are fp32. The residual is rounded to its type before it is normed,
because that is what the next layer will read.

Source: Zhang & Sennrich 2019; the fusion is everybody's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.overlap import await_last, let_next, overlapping


@triton.jit
def _norm_row(x, weight, columns, mask, out, hidden, eps):
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / hidden + eps)
    w = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + columns, (x * scale * w).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rms_norm(
    x, weight, out, hidden, eps, x_stride, out_stride, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    if OVERLAP:
        let_next()
        await_last()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < hidden
    values = tl.load(x + row * x_stride + columns, mask=mask, other=0.0).to(tl.float32)
    _norm_row(values, weight, columns, mask, out + row * out_stride, hidden, eps)


@triton.jit
def _add_rms_norm(
    delta, residual, weight, out, hidden, eps, delta_stride, residual_stride, out_stride,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        let_next()
        await_last()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < hidden
    there = residual + row * residual_stride + columns
    old = tl.load(there, mask=mask, other=0.0).to(tl.float32)
    change = tl.load(delta + row * delta_stride + columns, mask=mask, other=0.0).to(tl.float32)
    new = (old + change).to(residual.dtype.element_ty)
    tl.store(there, new, mask=mask)
    _norm_row(new.to(tl.float32), weight, columns, mask, out + row * out_stride, hidden, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """`out` = x / √(mean(x²) + eps) · weight. x, out: [rows, hidden], last dimension dense."""
    rows, hidden = x.shape
    block = triton.next_power_of_2(hidden)
    _rms_norm[(rows,)](
        x, weight, out, hidden, eps, x.stride(0), out.stride(0),
        BLOCK=block, num_warps=_warps(block), **overlapping(out.device),
    )  # fmt: skip


def add_rms_norm(delta: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """`residual` += delta, in place; `out` = rms_norm(residual). All [rows, hidden]."""
    rows, hidden = delta.shape
    block = triton.next_power_of_2(hidden)
    _add_rms_norm[(rows,)](
        delta, residual, weight, out, hidden, eps,
        delta.stride(0), residual.stride(0), out.stride(0),
        BLOCK=block, num_warps=_warps(block), **overlapping(out.device),
    )  # fmt: skip


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


def rms_norm_twin(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    mean = x.pow(2).mean(dim=-1, keepdim=True)
    return x * torch.rsqrt(mean + eps) * weight


def add_rms_norm_twin(
    delta: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The new residual, and its norm."""
    new = residual + delta
    return new, rms_norm_twin(new, weight, eps)
