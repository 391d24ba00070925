"""The inner loop of all attention kernels here, and how parts of one context are put together.

    queries [M, D] of one key head's group × pages of that head → running (acc, max, sum), in base 2

M stacks whatever shares the keys: the query heads of a group (decode), tokens × heads (extend),
members × heads (shared prefix), so that a page is read once for all of them and the product is wide
enough for the tensor cores, whose least M is 16.

Split context: each program of a split writes its normalised part and its log₂-sum-exp to `Scratch`,
then counts itself in; whoever comes last merges. One launch instead of two, and the counter is back
at zero for the next. The count is an acquire-release after a barrier of the program, so the parts
of the others are seen.

    part  [slot, row, head, D] fp32      lse [slot, row, head] fp32 (−inf: nothing was there)

Tokens beyond the context are masked in the scores and loaded as zero in the values: a stale page
may hold anything, and 0 · NaN is NaN.

Sources: FlashAttention-2 (Dao 2023), Flash-Decoding (Dao et al. 2023), stream-K's fix-up counters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """Parts of split contexts. One a model and stream; all its layers and graphs use it in turn."""

    part: Tensor
    """fp32, [pairs · heads · head_dim]"""
    lse: Tensor
    """fp32, [pairs · heads]"""
    counters: Tensor
    """int32, zero between launches"""
    pairs: int
    """How many (row, slot) pairs fit."""

    @classmethod
    def make(
        cls, max_rows: int, heads: int, kv_heads: int, head_dim: int, device: torch.device | str
    ) -> Scratch:
        pairs = max(16 * max_rows, 1024)
        return cls(
            torch.empty(pairs * heads * head_dim, dtype=torch.float32, device=device),
            torch.empty(pairs * heads, dtype=torch.float32, device=device),
            torch.zeros(4 * max(max_rows, 64) * kv_heads, dtype=torch.int32, device=device),
            pairs,
        )

    def check(self, rows: int, slots: int, counters: int) -> None:
        if rows * slots > self.pairs or counters > len(self.counters):
            raise ValueError(
                f"{rows} rows in {slots} parts do not fit in attention scratch made for "
                f"{self.pairs} pairs: make it with a larger max_rows"
            )


@triton.jit
def attend_blocks(
    acc, top, total, q, k, v, table, first, last, limit, seen, scale, offsets, dims, dim_mask,
    ROW: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk tokens [first, last) of one table in blocks.

    q [M, D]; k, v: pages, already at their head; seen [M]: the position of each query; tokens at or
    beyond `limit` are not there. MASKED False: the caller knows that nothing needs hiding. `scale`
    includes log₂ e.
    """
    for start in tl.range(first, last, BLOCK_N):
        tokens = start + offsets
        if MASKED:
            there = tokens < limit
            page = tl.load(table + tokens // PAGE, mask=there, other=0).to(tl.int64)
        else:
            page = tl.load(table + tokens // PAGE).to(tl.int64)
        rows = (page * PAGE + tokens % PAGE) * ROW
        at = rows[:, None] + dims[None, :]
        if EVEN_D:
            keys = tl.load(k + at)
        else:
            keys = tl.load(k + at, mask=dim_mask[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale
        if MASKED:
            hidden = ~there[None, :]
            if CAUSAL:
                hidden = hidden | (tokens[None, :] > seen[:, None])
            if WINDOW > 0:
                hidden = hidden | (tokens[None, :] <= seen[:, None] - WINDOW)
            scores = tl.where(hidden, float("-inf"), scores)
        high = tl.maximum(top, tl.max(scores, axis=1))
        if MASKED:
            base = tl.where(high == float("-inf"), 0.0, high)
        else:
            base = high
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None]
        if MASKED:
            values = tl.load(v + at, mask=there[:, None] & dim_mask[None, :], other=0.0)
        elif EVEN_D:
            values = tl.load(v + at)
        else:
            values = tl.load(v + at, mask=dim_mask[None, :], other=0.0)
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
        top = high
    return acc, top, total


@triton.jit
def finished(acc, top, total):
    """The part, normalised, and its log₂-sum-exp."""
    empty = total == 0.0
    part = acc / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, float("-inf"), top + tl.log2(tl.where(empty, 1.0, total)))
    return part, lse


@triton.jit
def put_part(part, lse, part_at, lse_at, heads_at, mask, dims, dim_mask, slot, slot_size,
             D: tl.constexpr):  # fmt: skip
    """heads_at [M]: row · heads + head of each query."""
    where = slot * slot_size + heads_at
    tl.store(
        part_at + where[:, None] * D + dims[None, :], part, mask=mask[:, None] & dim_mask[None, :]
    )
    tl.store(lse_at + where, lse, mask=mask)


@triton.jit
def merged(part_at, lse_at, heads_at, mask, dims, dim_mask, from_slot, to_slot, slot_size,
           M: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """All parts of slots [from_slot, to_slot) as one, [M, WIDTH]."""
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, WIDTH), tl.float32)
    for slot in tl.range(from_slot, to_slot):
        where = slot * slot_size + heads_at
        lse = tl.load(lse_at + where, mask=mask, other=float("-inf"))
        part = tl.load(
            part_at + where[:, None] * D + dims[None, :],
            mask=mask[:, None] & dim_mask[None, :],
            other=0.0,
        )
        high = tl.maximum(top, lse)
        base = tl.where(high == float("-inf"), 0.0, high)
        shrink = tl.exp2(top - base)
        weight = tl.exp2(lse - base)
        acc = acc * shrink[:, None] + part * weight[:, None]
        total = total * shrink + weight
        top = high
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]


def precision(dtype: torch.dtype) -> str:
    """fp32 is there to be exact; the half types have one way only."""
    return "ieee" if dtype == torch.float32 else "tf32"


def attention_twin(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, window: int = 0
) -> Tensor:
    """One sequence. q [rows, heads, head_dim]; k, v [tokens, kv_heads, head_dim]; seen [rows]: the
    position of each row, which attends to tokens up to it. [rows, heads, head_dim]"""
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("rhd,thd->hrt", q, k.repeat_interleave(group, dim=1)) * scale
    tokens = torch.arange(len(k), device=q.device)
    hidden = tokens > seen[:, None]
    if window:
        hidden |= tokens <= seen[:, None] - window
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return torch.einsum("hrt,thd->rhd", weights, v.repeat_interleave(group, dim=1))


def gathered(pages: Tensor, table: Tensor, length: int) -> Tensor:
    """[length, kv_heads, head_dim] of [num_pages, page_size, kv_heads, head_dim]."""
    count = -(-length // pages.shape[1])
    return pages[table[:count].long()].flatten(0, 1)[:length]
