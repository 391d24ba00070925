"""Head norm, rotary embedding and the store of keys and values, in one pass over the qkv row.

    qkv row  [ q₀ … q_H | k₀ … k_G | v₀ … v_G ]      one program a row
               rotate      rotate     │
               in place    in place   │
                              └───────┴──→ the row's slot in the layer's pages

Bound: memory (8B shape: 12 KB read, 10 KB + 4 KB written a row); a row is one program, because at
decode what counts is that five launches (two norms, a rotation, two scatters) are one.

Head norms are over one head; the rotation turns dimension i with i + half, so a head is loaded as
two halves and no swap through shared memory is needed. Factors are fp32 (the CPU's table has the
model's type, as transformers' has): [context, head_dim], cosines then sines, 64 MB for 128k × 128.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.overlap import await_last, let_next, overlapping
from engine.kernels.rotary import frequencies
from engine.models.config import Rope
from engine.models.weights import HeadNorms
from engine.pool import LayerKV


def rope_table(rope: Rope, head_dim: int, context: int, device: torch.device | str) -> Tensor:
    """fp32 [context, head_dim]: for each pair of dimensions its cosine, then for each its sine."""
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies(rope, head_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)


@triton.jit
def head_halves(pointer, heads, dims, mask, D: tl.constexpr):
    """First and second halves of heads, fp32, from rows of D numbers."""
    there = pointer + heads[:, None] * D + dims[None, :]
    first = tl.load(there, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(there + D // 2, mask=mask, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def normed_halves(first, second, weight, dims, dim_mask, eps, D: tl.constexpr):
    """RMSNorm over each head, which lies in two halves."""
    total = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    scale = (1.0 / tl.sqrt(total / D + eps))[:, None]
    w1 = tl.load(weight + dims, mask=dim_mask, other=0.0).to(tl.float32)[None, :]
    w2 = tl.load(weight + D // 2 + dims, mask=dim_mask, other=0.0).to(tl.float32)[None, :]
    return first * scale * w1, second * scale * w2


@triton.jit
def rotated_halves(first, second, table, position, dims, dim_mask, D: tl.constexpr):
    cos = tl.load(table + position * D + dims, mask=dim_mask, other=0.0)[None, :]
    sin = tl.load(table + position * D + D // 2 + dims, mask=dim_mask, other=0.0)[None, :]
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _rope_store(
    qkv, positions, slots, table, k_slots, v_slots, q_weight, k_weight, stride, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, HALF: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        let_next()
        await_last()
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    dims = tl.arange(0, HALF)
    dim_mask = dims < D // 2
    dtype = qkv.dtype.element_ty
    start = qkv + row * stride

    heads = tl.arange(0, Q_BLOCK)
    mask = (heads < HEADS)[:, None] & dim_mask[None, :]
    first, second = head_halves(start, heads, dims, mask, D)
    if NORM:
        first, second = normed_halves(first, second, q_weight, dims, dim_mask, eps, D)
    first, second = rotated_halves(first, second, table, position, dims, dim_mask, D)
    there = start + heads[:, None] * D + dims[None, :]
    tl.store(there, first.to(dtype), mask=mask)
    tl.store(there + D // 2, second.to(dtype), mask=mask)

    heads = tl.arange(0, KV_BLOCK)
    mask = (heads < KV_HEADS)[:, None] & dim_mask[None, :]
    first, second = head_halves(start + HEADS * D, heads, dims, mask, D)
    if NORM:
        first, second = normed_halves(first, second, k_weight, dims, dim_mask, eps, D)
    first, second = rotated_halves(first, second, table, position, dims, dim_mask, D)
    there = start + HEADS * D + heads[:, None] * D + dims[None, :]
    tl.store(there, first.to(dtype), mask=mask)
    tl.store(there + D // 2, second.to(dtype), mask=mask)

    if slot >= 0:
        kept = slot * KV_HEADS * D + heads[:, None] * D + dims[None, :]
        tl.store(k_slots + kept, first.to(dtype), mask=mask)
        tl.store(k_slots + kept + D // 2, second.to(dtype), mask=mask)
        first, second = head_halves(start + (HEADS + KV_HEADS) * D, heads, dims, mask, D)
        tl.store(v_slots + kept, first.to(dtype), mask=mask)
        tl.store(v_slots + kept + D // 2, second.to(dtype), mask=mask)


def rope_store(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    table: Tensor,
    kv: LayerKV,
    heads: int,
    norms: HeadNorms | None,
) -> None:
    """Norm (where the model has it) and rotate queries and keys of `qkv` in place, and store keys
    and values. qkv [rows, (heads + 2 · kv_heads) · head_dim]; positions, slots [rows], slot −1
    stores nothing; table from `rope_table`."""
    _, _, kv_heads, head_dim = kv.k.shape
    _rope_store[(len(qkv),)](
        qkv, positions, slots, table, kv.k_slots, kv.v_slots,
        norms.q if norms else qkv, norms.k if norms else qkv,
        qkv.stride(0), norms.eps if norms else 0.0,
        HEADS=heads, KV_HEADS=kv_heads, D=head_dim, NORM=norms is not None,
        Q_BLOCK=triton.next_power_of_2(heads), KV_BLOCK=triton.next_power_of_2(kv_heads),
        HALF=triton.next_power_of_2(head_dim // 2), num_warps=4, **overlapping(qkv.device),
    )  # fmt: skip


def rope_twin(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    heads: int,
    kv_heads: int,
    norms: HeadNorms | None,
) -> Tensor:
    """The qkv rows [rows, (heads + 2 · kv_heads) · head_dim] as `rope_store` leaves them."""
    rows = qkv.view(len(qkv), heads + 2 * kv_heads, -1)
    q, k, v = rows[:, :heads], rows[:, heads : heads + kv_heads], rows[:, heads + kv_heads :]
    if norms is not None:
        q, k = _normed(q, norms.q, norms.eps), _normed(k, norms.k, norms.eps)
    cos, sin = table[positions.long()].to(qkv.dtype).unsqueeze(1).chunk(2, dim=-1)
    return torch.cat((_rotated(q, cos, sin), _rotated(k, cos, sin), v), dim=1).flatten(1)


def _normed(heads: Tensor, weight: Tensor, eps: float) -> Tensor:
    mean = heads.pow(2).mean(dim=-1, keepdim=True)
    return heads * torch.rsqrt(mean + eps) * weight.to(heads.dtype)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
