"""Decode attention: one query token a row against its paged context. One launch a layer.

    program (row, key head, split): queries of the head's whole group × its share of the context

Bound: memory. Each key and value is read once (8B shape: 4 KB a token of context, 128 rows of 576
tokens are 302 MB a layer, 0.1 ms at 3 TB/s), and the group shares the read, padded to 16 rows for
the tensor cores. The grid is fixed by the batch size; a row's context is cut into at most `splits`
shares of at least MIN_CHUNK tokens, the rest of its programs leave at once. So one long row among
short ones does not hold everybody up, and a single row fills the card. The last share merges (see
attend.py).

With a shared prefix the row starts at `starts[row]`, and the parts that prefix.py has left in slots
0 … prefix_splits − 1 join the merge.

Rejected: rotating the queries and storing the new key here too, a launch less, but no faster: a
layer of the 0.6B shape took 29.0 µs with it and 27.8 and 29.2 without on an H100, because launches
overlap anyway (overlap.py). A fixed chunk length with a grid as large as
the longest context allows, which at 128k tokens launches thousands of programs that have nothing
to do. A second kernel for the merge.

Source: Flash-Decoding (Dao et al. 2023).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.attend import (
    LOG2_E,
    Scratch,
    attend_blocks,
    attention_twin,
    finished,
    gathered,
    merged,
    precision,
    put_part,
)
from engine.kernels.gpu.overlap import await_last, let_next, overlapping
from engine.pool import LayerKV

BLOCK_N = 64
WARPS = 4
STAGES = 3
MOST_SPLITS = 32
LEAST_SPLITS = 4


def decode_splits(rows: int, kv_heads: int, sms: int) -> int:
    """How many shares a row's context may be cut into: eight programs a multiprocessor at least."""
    wanted = 8 * sms // max(1, rows * kv_heads)
    return max(LEAST_SPLITS, min(MOST_SPLITS, 1 << max(0, wanted.bit_length() - 1)))


@triton.jit
def _decode(
    q, k, v, tables, lengths, starts, out, part_at, lse_at, counters,
    q_stride, table_stride, out_stride, slot_size, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr, PREFIX_SPLITS: tl.constexpr, MIN_CHUNK: tl.constexpr,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        let_next()
        await_last()
    split = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2)
    length = tl.load(lengths + row)
    first = 0
    if PREFIX_SPLITS > 0:
        first = tl.load(starts + row)
    if WINDOW > 0:
        first = tl.maximum(first, length - WINDOW)
    own = length - first
    share = tl.cdiv(tl.cdiv(own, SPLITS), BLOCK_N) * BLOCK_N
    share = tl.maximum(share, MIN_CHUNK)
    active = tl.maximum(tl.cdiv(own, share), 1)
    if split >= active:
        return

    lanes = tl.arange(0, M)
    dims = tl.arange(0, WIDTH)
    dim_mask = dims < D
    mask = lanes < GROUP
    heads_at = row.to(tl.int64) * HEADS + head * GROUP + lanes
    query_at = q + row.to(tl.int64) * q_stride + (head * GROUP + lanes)[:, None] * D + dims[None, :]
    queries = tl.load(query_at, mask=mask[:, None] & dim_mask[None, :], other=0.0)
    acc = tl.zeros((M, WIDTH), tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    begin = first + split * share
    end = tl.minimum(begin + share, length)
    acc, top, total = attend_blocks(
        acc, top, total, queries, k + head * D, v + head * D,
        tables + row.to(tl.int64) * table_stride, begin, end, end, lanes, scale,
        tl.arange(0, BLOCK_N), dims, dim_mask,
        ROW=KV_HEADS * D, PAGE=PAGE, BLOCK_N=BLOCK_N, CAUSAL=False, WINDOW=0,
        EVEN_D=D == WIDTH, PRECISION=PRECISION,
    )  # fmt: skip
    part, lse = finished(acc, top, total)
    out_at = out + row.to(tl.int64) * out_stride + (head * GROUP + lanes)[:, None] * D
    out_at += dims[None, :]
    out_mask = mask[:, None] & dim_mask[None, :]
    grouped = False
    if PREFIX_SPLITS > 0:
        grouped = first > 0
    if (active == 1) & (not grouped):
        tl.store(out_at, part.to(out.dtype.element_ty), mask=out_mask)
        return
    put_part(part, lse, part_at, lse_at, heads_at, mask, dims, dim_mask, PREFIX_SPLITS + split,
             slot_size, D)  # fmt: skip
    tl.debug_barrier()
    counter = counters + row * KV_HEADS + head
    if tl.atomic_add(counter, 1, sem="acq_rel") == active - 1:
        from_slot = tl.where(grouped, 0, PREFIX_SPLITS)
        COLUMNS: tl.constexpr = LANES * WIDTH
        columns = tl.arange(0, COLUMNS)
        lane = columns // WIDTH
        there = (lane < GROUP) & (columns % WIDTH < D)
        first_head = row.to(tl.int64) * HEADS + head * GROUP
        whole = merged(part_at, lse_at, first_head, columns, there, from_slot,
                       PREFIX_SPLITS + active, slot_size, WIDTH, D, COLUMNS)  # fmt: skip
        whole_at = out + row.to(tl.int64) * out_stride + (head * GROUP + lane) * D
        tl.store(whole_at + columns % WIDTH, whole.to(out.dtype.element_ty), mask=there)
        tl.store(counter, 0)


def decode_attention(
    q: Tensor,
    kv: LayerKV,
    tables: Tensor,
    lengths: Tensor,
    out: Tensor,
    scratch: Scratch,
    *,
    splits: int,
    scale: float,
    window: int = 0,
    starts: Tensor | None = None,
    prefix_splits: int = 0,
) -> None:
    """q, out [rows, heads · head_dim]; tables int32 [rows, pages]; lengths int32 [rows]: context
    with this token, 0 for padding (its output is 0). `splits` from `decode_splits`. With
    `prefix_splits`, prefix.py ran before on the same scratch, and starts int32 [rows] says where a
    row's own context begins; not together with a window."""
    rows = len(q)
    _, page_size, kv_heads, head_dim = kv.k.shape
    heads = q.shape[1] // head_dim
    scratch.check(rows, prefix_splits + splits, rows * kv_heads)
    _decode[(splits, kv_heads, rows)](
        q, kv.k, kv.v, tables, lengths, lengths if starts is None else starts, out,
        scratch.part, scratch.lse, scratch.counters,
        q.stride(0), tables.stride(0), out.stride(0), rows * heads, scale * LOG2_E,
        HEADS=heads, KV_HEADS=kv_heads, GROUP=heads // kv_heads,
        LANES=triton.next_power_of_2(heads // kv_heads), D=head_dim,
        WIDTH=max(16, triton.next_power_of_2(head_dim)), PAGE=page_size,
        M=max(16, triton.next_power_of_2(heads // kv_heads)), BLOCK_N=BLOCK_N,
        SPLITS=splits, PREFIX_SPLITS=0 if starts is None else prefix_splits,
        MIN_CHUNK=min_chunk(splits), WINDOW=window, PRECISION=precision(q.dtype),
        num_warps=WARPS, num_stages=STAGES, **overlapping(q.device),
    )  # fmt: skip


def min_chunk(splits: int) -> int:
    """Many rows fill the card without splitting, so for them only long contexts are cut."""
    return 64 if splits >= 16 else 256 if splits > LEAST_SPLITS else 1024


def decode_twin(
    q: Tensor, kv: LayerKV, tables: Tensor, lengths: Tensor, *, scale: float, window: int = 0
) -> Tensor:
    """[rows, heads · head_dim], row by row over its gathered pages."""
    head_dim = kv.k.shape[-1]
    out = torch.zeros_like(q)
    for row, length in enumerate(lengths.tolist()):
        if length:
            keys = gathered(kv.k, tables[row], length).to(q.dtype)
            values = gathered(kv.v, tables[row], length).to(q.dtype)
            last = torch.tensor([length - 1], device=q.device)
            one = q[row].view(1, -1, head_dim)
            out[row] = attention_twin(one, keys, values, last, scale, window).flatten()
    return out
