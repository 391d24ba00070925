"""The inner loop of all attention kernels here, and how parts of one context are put together.

    queries [M, D] of one key head's group × pages of that head → running (acc, max, sum), in base 2

M stacks whatever shares the keys: the query heads of a group (decode), tokens × heads (extend),
members × heads (shared prefix), so that a page is read once for all of them and the product is wide
enough for the tensor cores, whose least M is 16.

Split context: each program of a split writes its normalised part and its log₂-sum-exp to `Scratch`.
In decode it then counts itself in, and whoever comes last merges: one launch instead of two, and
the counter is back at zero for the next. The count is an acquire-release after a barrier of the
program, so the parts of the others are seen.

    part  [slot, row, head, D] fp32      lse [slot, row, head] fp32 (−inf: nothing was there)

In prefill a second kernel merges: a tile of 64 queries has half a megabyte of parts, which one
program reads for 13 µs and all together in three.

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

from engine.kernels.gpu.overlap import await_last, let_next, overlapping

LOG2_E = 1.4426950408889634
EXTEND_HEADS = 40_000
"""No split prefill leaves more parts: two programs a multiprocessor, 128 stacked queries each."""


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
        pairs = max(16 * max_rows, EXTEND_HEADS // heads, 1024)
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
    ROW: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk tokens [first, last) of one table in blocks.

    q [M, D]; k, v: pages, already at their head; seen [M]: the position of each query; tokens at or
    beyond `limit` are not there. `scale` includes log₂ e.
    """
    for start in tl.range(first, last, BLOCK_N):
        tokens = start + offsets
        there = tokens < limit
        page = tl.load(table + tokens // PAGE, mask=there, other=0).to(tl.int64)
        rows = (page * PAGE + tokens % PAGE) * ROW
        at = rows[:, None] + dims[None, :]
        if EVEN_D:
            keys = tl.load(k + at)
        else:
            keys = tl.load(k + at, mask=dim_mask[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        hidden = ~there[None, :]
        if CAUSAL:
            hidden = hidden | (tokens[None, :] > seen[:, None])
        if WINDOW > 0:
            hidden = hidden | (tokens[None, :] <= seen[:, None] - WINDOW)
        scores = tl.where(hidden, float("-inf"), scores)
        high = tl.maximum(top, tl.max(scores, axis=1) * scale)
        base = tl.where(high == float("-inf"), 0.0, high)
        weights = tl.exp2(scores * scale - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None]
        values = tl.load(v + at, mask=there[:, None] & dim_mask[None, :], other=0.0)
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
        top = high
    return acc, top, total


@triton.jit
def attend_whole_blocks(
    acc, top, total, q, k, v, table, first, last, limit, scale, offsets, dims, dim_mask,
    ROW: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`attend_blocks` for whole blocks of which nothing is hidden, and many queries: the tensor
    cores compute the next block's scores while this one's weights are made, as in FlashAttention-3.
    """
    tokens = first + offsets
    page = tl.load(table + tokens // PAGE, mask=tokens < limit, other=0).to(tl.int64)
    rows = (page * PAGE + tokens % PAGE) * ROW
    keys = tl.load(k + rows[:, None] + dims[None, :], mask=dim_mask[None, :], other=0.0)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    for start in tl.range(first, last, BLOCK_N):
        tokens = tl.minimum(start + BLOCK_N, last - BLOCK_N) + offsets
        page = tl.load(table + tokens // PAGE).to(tl.int64)
        next_rows = (page * PAGE + tokens % PAGE) * ROW
        if EVEN_D:
            next_keys = tl.load(k + next_rows[:, None] + dims[None, :])
        else:
            there = dim_mask[None, :]
            next_keys = tl.load(k + next_rows[:, None] + dims[None, :], mask=there, other=0.0)
        next_scores = tl.dot(q, tl.trans(next_keys), input_precision=PRECISION)
        high = tl.maximum(top, tl.max(scores, axis=1) * scale)
        weights = tl.exp2(scores * scale - high[:, None])
        shrink = tl.exp2(top - high)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None]
        if EVEN_D:
            values = tl.load(v + rows[:, None] + dims[None, :])
        else:
            values = tl.load(v + rows[:, None] + dims[None, :], mask=dim_mask[None, :], other=0.0)
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
        top = high
        scores = next_scores
        rows = next_rows
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
def merged(part_at, lse_at, first_head, columns, mask, from_slot, to_slot, slot_size,
           WIDTH: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """All parts of slots [from_slot, to_slot) as one. The heads of a group lie side by side:
    columns [COLUMNS] = head in the group · WIDTH + dimension. A thread has its columns of many
    slots at a time: a program that is the last one waits for each read."""
    STEP: tl.constexpr = 2048 // COLUMNS if COLUMNS < 2048 else 1
    steps = tl.arange(0, STEP)
    heads = columns // WIDTH
    inner = heads * D + columns % WIDTH
    top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    acc = tl.zeros((COLUMNS,), tl.float32)
    for start in tl.range(from_slot, to_slot, STEP):
        slots = start + steps
        there = (slots < to_slot)[:, None] & mask[None, :]
        where = slots[:, None] * slot_size + first_head
        lse = tl.load(lse_at + where + heads[None, :], mask=there, other=float("-inf"))
        parts = tl.load(part_at + where * D + inner[None, :], mask=there, other=0.0)
        high = tl.maximum(top, tl.max(lse, axis=0))
        base = tl.where(high == float("-inf"), 0.0, high)
        shrink = tl.exp2(top - base)
        weights = tl.exp2(lse - base[None, :])
        acc = acc * shrink + tl.sum(parts * weights, axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        top = high
    return acc / tl.where(total == 0.0, 1.0, total)


@triton.jit
def _merge_rows(
    part_at, lse_at, q_starts, out, chunks, out_stride, slot_size,
    HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """One row and head: all its parts at once. What was not there has −inf for its sum."""
    if OVERLAP:
        let_next()
        await_last()
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if row >= tl.load(q_starts + chunks):
        return
    dims = tl.arange(0, WIDTH)
    where = tl.arange(0, SPLITS) * slot_size + row * HEADS + head
    lse = tl.load(lse_at + where)
    there = (lse > float("-inf"))[:, None] & (dims < D)[None, :]
    parts = tl.load(part_at + where[:, None] * D + dims[None, :], mask=there, other=0.0)
    top = tl.max(lse, axis=0)
    weights = tl.exp2(lse - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weights, axis=0)
    whole = tl.sum(parts * weights[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    there = out + row * out_stride + head * D + dims
    tl.store(there, whole.to(out.dtype.element_ty), mask=dims < D)


def merge_rows(
    scratch: Scratch, q_starts: Tensor, out: Tensor, heads: int, head_dim: int, splits: int
) -> None:
    """The `splits` parts of each row before q_starts[-1] → out [rows, heads · head_dim]."""
    rows = len(out)
    _merge_rows[(rows, heads)](
        scratch.part, scratch.lse, q_starts, out, len(q_starts) - 1, out.stride(0), rows * heads,
        HEADS=heads, D=head_dim, WIDTH=triton.next_power_of_2(head_dim), SPLITS=splits,
        num_warps=4, **overlapping(out.device),
    )  # fmt: skip


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
