"""Prefill attention: ragged chunks of new tokens behind cached ones, causal, over pages.

    program (key head, tile, split): [tokens × heads of the group] stacked to BLOCK_M queries

Bound: arithmetic. 8,192 tokens of the 8B shape are 0.55 TFLOP a layer. Stacking a group's heads
means that a tile spans BLOCK_M / group tokens: keys are read once for all heads of the group, and
less is computed in vain on the diagonal. Blocks wholly before the diagonal run without a mask; only
the last ones pay for it. The long tiles start first, for all heads, so that the short ones fill the
end.

Which tile belongs to which chunk is found by each program from `q_starts` (a sum over the chunks),
so the grid depends on the number of rows and chunks alone and captures.

Few tokens behind a long cached prefix (a warm prompt) leave most of the card idle, and a step is
then as long as one program's walk through the context: `splits` cuts the context, and a second
kernel merges.

Source: FlashAttention-2 (Dao 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.attend import (
    LOG2_E,
    Scratch,
    attend_blocks,
    attend_whole_blocks,
    attention_twin,
    finished,
    gathered,
    merge_rows,
    precision,
    put_part,
)
from engine.kernels.gpu.overlap import await_last, let_next, overlapping
from engine.pool import LayerKV

MIN_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Tile:
    """Stacked queries of a program, tokens of a block, and how they are walked."""

    m: int
    n: int
    warps: int
    stages: int


def best_tile(stacked: int, head_dim: int, dtype: torch.dtype) -> Tile:
    """Measured: python -m bench.kernels --sweep extend."""
    wide = triton.next_power_of_2(head_dim) > 128 or dtype == torch.float32
    return Tile(_block_m(stacked), 32 if wide else 64, 4, 2 if wide else 3)


def extend_splits(rows: int, heads: int, kv_heads: int, sms: int) -> int:
    """Into how many parts the context of `rows` new tokens is cut: about two programs a
    multiprocessor, and none for rows that fill the card by themselves."""
    tiles = -(-rows * heads // (kv_heads * _block_m(rows * heads // kv_heads)))
    wanted = 2 * sms // max(1, tiles * kv_heads)
    return max(1, min(32, 1 << max(0, wanted.bit_length() - 1)))


def _block_m(stacked: int) -> int:
    return 64 if stacked > 16 else 16


@triton.jit
def find_tile(q_starts, chunks, tile, CHUNKS: tl.constexpr, TOKENS: tl.constexpr):
    """Chunk of this tile (`chunks` if there is none), and its place in it, the last tile first."""
    each = tl.arange(0, CHUNKS)
    inside = each < chunks
    begin = tl.load(q_starts + each, mask=inside, other=0)
    end = tl.load(q_starts + each + 1, mask=inside, other=0)
    tiles = (end - begin + TOKENS - 1) // TOKENS
    passed = tl.cumsum(tiles, axis=0)
    chunk = tl.sum((inside & (passed <= tile)).to(tl.int32), axis=0)
    after = tl.sum(tl.where(each <= chunk, tiles, 0), axis=0)
    return chunk, after - 1 - tile


@triton.jit
def _extend(
    q, k, v, tables, q_starts, kv_lengths, out, part_at, lse_at,
    chunks, q_stride, table_stride, out_stride, slot_size, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr, SPLITS: tl.constexpr, MIN_CHUNK: tl.constexpr,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        let_next()
        await_last()
    head = tl.program_id(0)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    TOKENS: tl.constexpr = M // LANES
    chunk, place = find_tile(q_starts, chunks, tile, CHUNKS, TOKENS)
    if chunk >= chunks:
        return
    begin_row = tl.load(q_starts + chunk)
    end_row = tl.load(q_starts + chunk + 1)
    length = tl.load(kv_lengths + chunk)
    before = length - (end_row - begin_row)

    lanes = tl.arange(0, M)
    token = place * TOKENS + lanes // LANES
    lane = lanes % LANES
    row = begin_row + token
    mask = (row < end_row) & (lane < GROUP)
    seen = before + token
    low = 0
    if WINDOW > 0:
        low = tl.maximum(before + place * TOKENS - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    high = tl.minimum(before + (place + 1) * TOKENS, length)
    share = tl.maximum(tl.cdiv(tl.cdiv(high - low, SPLITS), BLOCK_N) * BLOCK_N, MIN_CHUNK)
    if SPLITS == 1:
        share = tl.cdiv(high - low, BLOCK_N) * BLOCK_N
    heads_at = row.to(tl.int64) * HEADS + head * GROUP + lane
    if split * share >= high - low:
        tl.store(lse_at + split * slot_size + heads_at, tl.full((M,), float("-inf"), tl.float32),
                 mask=mask)  # fmt: skip
        return

    dims = tl.arange(0, WIDTH)
    dim_mask = dims < D
    offsets = tl.arange(0, BLOCK_N)
    inner = (head * GROUP + lane)[:, None] * D + dims[None, :]
    full = mask[:, None] & dim_mask[None, :]
    queries = tl.load(q + row.to(tl.int64)[:, None] * q_stride + inner, mask=full, other=0.0)
    acc = tl.zeros((M, WIDTH), tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    table = tables + chunk.to(tl.int64) * table_stride
    begin = low + split * share
    end = tl.minimum(begin + share, high)
    middle = begin
    if WINDOW == 0:
        # Tokens before the tile's first position hide nothing.
        middle = tl.minimum((before + place * TOKENS + 1) // BLOCK_N * BLOCK_N, end)
        middle = tl.maximum(middle // BLOCK_N * BLOCK_N, begin)
        acc, top, total = attend_whole_blocks(
            acc, top, total, queries, k + head * D, v + head * D, table, begin, middle, length,
            scale, offsets, dims, dim_mask, ROW=KV_HEADS * D, PAGE=PAGE, BLOCK_N=BLOCK_N,
            EVEN_D=D == WIDTH, PRECISION=PRECISION,
        )  # fmt: skip
    acc, top, total = attend_blocks(
        acc, top, total, queries, k + head * D, v + head * D, table, middle, end, end, seen,
        scale, offsets, dims, dim_mask, ROW=KV_HEADS * D, PAGE=PAGE, BLOCK_N=BLOCK_N,
        CAUSAL=True, WINDOW=WINDOW, EVEN_D=D == WIDTH, PRECISION=PRECISION,
    )  # fmt: skip
    part, lse = finished(acc, top, total)
    out_at = out + row.to(tl.int64)[:, None] * out_stride + inner
    if SPLITS == 1:
        tl.store(out_at, part.to(out.dtype.element_ty), mask=full)
    else:
        put_part(part, lse, part_at, lse_at, heads_at, mask, dims, dim_mask, split, slot_size, D)


def extend_attention(
    q: Tensor,
    kv: LayerKV,
    tables: Tensor,
    q_starts: Tensor,
    kv_lengths: Tensor,
    out: Tensor,
    *,
    scale: float,
    splits: int = 1,
    scratch: Scratch | None = None,
    window: int = 0,
    tile: Tile | None = None,
) -> None:
    """q, out [rows, heads · head_dim]; tables int32 [chunks, pages]; q_starts int32 [chunks + 1];
    kv_lengths int32 [chunks]: context with the chunk's last row, whose keys and values are stored
    already. Unused chunks begin and end at the last start; rows behind it are not written. `splits`
    above 1 needs scratch."""
    rows, chunks = len(q), len(kv_lengths)
    _, page_size, kv_heads, head_dim = kv.k.shape
    heads = q.shape[1] // head_dim
    group = heads // kv_heads
    lanes = triton.next_power_of_2(group)
    tile = tile or best_tile(rows * lanes, head_dim, q.dtype)
    m = max(tile.m, lanes)
    tiles = min(rows, triton.cdiv(rows, m // lanes) + chunks - 1)
    if splits > 1:
        assert scratch is not None, "a split context needs scratch"
        scratch.check(rows, splits, 0)
    _extend[(kv_heads, tiles, splits)](
        q, kv.k, kv.v, tables, q_starts, kv_lengths, out,
        scratch.part if scratch else q, scratch.lse if scratch else q,
        chunks, q.stride(0), tables.stride(0), out.stride(0), rows * heads, scale * LOG2_E,
        HEADS=heads, KV_HEADS=kv_heads, GROUP=group, LANES=lanes, D=head_dim,
        WIDTH=max(16, triton.next_power_of_2(head_dim)), PAGE=page_size, M=m,
        BLOCK_N=tile.n, CHUNKS=triton.next_power_of_2(chunks), SPLITS=splits,
        MIN_CHUNK=MIN_CHUNK, WINDOW=window, PRECISION=precision(q.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
        **overlapping(q.device),
    )  # fmt: skip
    if scratch is not None and splits > 1:
        merge_rows(scratch, q_starts, out, heads, head_dim, splits)


def extend_twin(
    q: Tensor,
    kv: LayerKV,
    tables: Tensor,
    q_starts: Tensor,
    kv_lengths: Tensor,
    *,
    scale: float,
    window: int = 0,
) -> Tensor:
    """[rows, heads · head_dim], chunk by chunk over its gathered pages."""
    head_dim = kv.k.shape[-1]
    out = torch.zeros_like(q)
    starts = q_starts.tolist()
    for chunk, length in enumerate(kv_lengths.tolist()):
        rows = slice(starts[chunk], starts[chunk + 1])
        count = rows.stop - rows.start
        if count:
            keys = gathered(kv.k, tables[chunk], length).to(q.dtype)
            values = gathered(kv.v, tables[chunk], length).to(q.dtype)
            seen = torch.arange(length - count, length, device=q.device)
            mine = q[rows].view(count, -1, head_dim)
            out[rows] = attention_twin(mine, keys, values, seen, scale, window).flatten(1)
    return out
