"""SiLU(gate) · up over the fused product of both, one block of a row a program.

Bound: memory, 3 · ffn numbers a row; 128 rows of 14,336 in bf16 are 11 MB, 3 µs. One row alone
does not come here: gemv.py applies it to the product while that is still in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.overlap import await_last, let_next, overlapping

BLOCK = 1024


@triton.jit
def _silu_mul(gate_up, out, ffn, in_stride, out_stride, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    if OVERLAP:
        let_next()
        await_last()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < ffn
    gates = gate_up + row * in_stride + columns
    gate = tl.load(gates, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gates + ffn, mask=mask, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * out_stride + columns, value.to(out.dtype.element_ty), mask=mask)


def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    """[rows, 2·ffn], the gates first → `out` [rows, ffn]."""
    rows, ffn = out.shape
    _silu_mul[(rows, triton.cdiv(ffn, BLOCK))](
        gate_up, out, ffn, gate_up.stride(0), out.stride(0), BLOCK=BLOCK, num_warps=4,
        **overlapping(out.device),
    )  # fmt: skip


def silu_mul_twin(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up
