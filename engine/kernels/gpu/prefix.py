"""Shared-prefix attention: a prefix that many decoding rows begin with is read once for all.

    program (key head, tile, split): [members × heads of the group] stacked to BLOCK_M queries
                                     × its share of the prefix's pages → part and log-sum-exp

Problem: 128 rows behind one system prompt of 2,048 tokens read 1.07 GB of keys and values a layer
(8B shape), of which 1.05 GB are the same 8 MB. Choice: every tile of members walks the prefix once;
decode.py then walks each row's own tokens and merges both by log-sum-exp, which is exact. Bound:
with 512 stacked queries a key head, 4.3 GFLOP and 8 MB a layer: arithmetic, 6 µs at 700 TFLOP/s.

One level: a row is in one group, whose pages start at position 0 and end at a page. Nested segments
of the tree are flattened by `choose_groups`, which takes the group that saves most page reads
first.

    tiles   [max_tiles]  group of the tile (−1: none)        first  [max_tiles]  its first member
    members [max_rows]   row numbers, group by group         ends   [max_groups] behind its members
    starts  [max_rows]   prefix length of each row, 0: none  tables, lengths by group

The plan changes only when a row joins, leaves or moves; its arrays are static, so graphs replay
over whatever it says. Padding: a tile without a group leaves at once.

Rejected: all levels of the tree (a launch a level, and system prompt + few-shot is nearly always
the longest worth having); gathering the prefix into one piece (pages are read at full speed as it
is).

Sources: Hydragen (Juravsky et al. 2024), FlashInfer's cascade attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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
    precision,
    put_part,
)
from engine.pool import LayerKV
from radix import Shared

M = 64
BLOCK_N = 64
PREFIX_SPLITS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rows that begin with the same whole pages."""

    rows: tuple[int, ...]
    pages: npt.NDArray[np.int32]

    @property
    def saved(self) -> int:
        """Page reads saved a step and layer."""
        return (len(self.rows) - 1) * len(self.pages)


def choose_groups(
    segments: Sequence[Shared], *, max_groups: int, min_rows: int = 2, min_pages: int = 8
) -> list[Group]:
    """One level out of the tree's nested segments (`radix.shared`, outermost first): again and
    again the segment, with all that leads to it, that saves most page reads among the free rows."""
    chains = _chains(segments)
    free = {row for rows, _ in chains for row in rows}
    groups: list[Group] = []
    while len(groups) < max_groups:
        offers = (Group(tuple(r for r in rows if r in free), pages) for rows, pages in chains)
        fit = [g for g in offers if len(g.rows) >= min_rows and len(g.pages) >= min_pages]
        if not fit:
            break
        best = max(fit, key=lambda group: group.saved)
        groups.append(best)
        free.difference_update(best.rows)
    return groups


def _chains(
    segments: Sequence[Shared],
) -> list[tuple[tuple[int, ...], npt.NDArray[np.int32]]]:
    """Each segment with the pages of those above it: members, pages from position 0."""
    chains: list[tuple[tuple[int, ...], npt.NDArray[np.int32]]] = []
    for segment in segments:
        pages = segment.pages.astype(np.int32)
        if segment.first_page:
            above = next(
                whole
                for rows, whole in reversed(chains)
                if len(whole) == segment.first_page and set(segment.members) <= set(rows)
            )
            pages = np.concatenate((above, pages))
        chains.append((segment.members, pages))
    return chains


@dataclass(frozen=True, slots=True, eq=False)
class PrefixPlan:
    """Which rows read which prefix together: one int32 block on the host (pinned) and its copy."""

    host: Tensor
    device: Tensor
    page_size: int
    tile_members: int
    max_rows: int
    max_groups: int
    max_pages: int

    @classmethod
    def make(
        cls,
        max_rows: int,
        max_groups: int,
        max_pages: int,
        *,
        page_size: int,
        heads: int,
        kv_heads: int,
        device: torch.device | str,
    ) -> PrefixPlan:
        lanes = triton.next_power_of_2(heads // kv_heads)
        tile_members = max(1, M // lanes)
        tiles = _max_tiles(max_rows, max_groups, tile_members)
        size = 2 * tiles + 2 * max_rows + 2 * max_groups + max_groups * max_pages
        pinned = torch.device(device).type == "cuda"
        plan = cls(
            torch.zeros(size, dtype=torch.int32, pin_memory=pinned),
            torch.zeros(size, dtype=torch.int32, device=device),
            page_size, tile_members, max_rows, max_groups, max_pages,
        )  # fmt: skip
        plan.fill([])
        plan.upload()
        return plan

    @property
    def max_tiles(self) -> int:
        return _max_tiles(self.max_rows, self.max_groups, self.tile_members)

    @property
    def starts(self) -> Tensor:
        """int32 [max_rows], for decode_attention."""
        return self._parts(self.device)["starts"]

    def parts(self) -> dict[str, Tensor]:
        """The device's arrays, by the names that the head of this file gives them."""
        return self._parts(self.device)

    def fill(self, groups: Sequence[Group]) -> None:
        """Write `groups` to the host's copy. The last upload must have been done."""
        if len(groups) > self.max_groups:
            raise ValueError(f"{len(groups)} prefix groups, but room for {self.max_groups}")
        parts = {name: part.numpy() for name, part in self._parts(self.host).items()}
        parts["tiles"][:] = -1
        parts["starts"][:] = 0
        tile = member = 0
        for index, group in enumerate(groups):
            rows, pages = group.rows, group.pages[: self.max_pages]
            parts["starts"][list(rows)] = len(pages) * self.page_size
            parts["members"][member : member + len(rows)] = rows
            parts["ends"][index] = member + len(rows)
            parts["lengths"][index] = len(pages) * self.page_size
            parts["tables"][index, : len(pages)] = pages
            count = -(-len(rows) // self.tile_members)
            parts["tiles"][tile : tile + count] = index
            parts["first"][tile : tile + count] = member + np.arange(count) * self.tile_members
            tile, member = tile + count, member + len(rows)

    def upload(self) -> None:
        """Copy to the device on the current stream; returns at once where the host is pinned."""
        self.device.copy_(self.host, non_blocking=True)

    def _parts(self, block: Tensor) -> dict[str, Tensor]:
        tiles, rows, groups = self.max_tiles, self.max_rows, self.max_groups
        names = ("tiles", "first", "members", "starts", "ends", "lengths", "tables")
        sizes = (tiles, tiles, rows, rows, groups, groups, groups * self.max_pages)
        parts = dict(zip(names, block.split(sizes), strict=True))
        parts["tables"] = parts["tables"].view(groups, self.max_pages)
        return parts


def _max_tiles(max_rows: int, max_groups: int, tile_members: int) -> int:
    return -(-max_rows // tile_members) + max_groups - 1


@triton.jit
def _prefix(
    q, k, v, tables, lengths, tiles, first_members, members, ends, part_at, lse_at,
    q_stride, table_stride, slot_size, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    group = tl.load(tiles + tile)
    if group < 0:
        return
    length = tl.load(lengths + group)
    lanes = tl.arange(0, M)
    member = tl.load(first_members + tile) + lanes // LANES
    lane = lanes % LANES
    mask = (member < tl.load(ends + group)) & (lane < GROUP)
    row = tl.load(members + member, mask=mask, other=0).to(tl.int64)
    dims = tl.arange(0, WIDTH)
    dim_mask = dims < D
    offsets = tl.arange(0, BLOCK_N)
    query_at = q + row[:, None] * q_stride + (head * GROUP + lane)[:, None] * D + dims[None, :]
    queries = tl.load(query_at, mask=mask[:, None] & dim_mask[None, :], other=0.0)
    acc = tl.zeros((M, WIDTH), tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_N) * BLOCK_N
    begin = tl.minimum(split * share, length)
    end = tl.minimum(begin + share, length)
    middle = begin + (end - begin) // BLOCK_N * BLOCK_N
    table = tables + group.to(tl.int64) * table_stride
    acc, top, total = attend_whole_blocks(
        acc, top, total, queries, k + head * D, v + head * D, table, begin, middle, length, scale,
        offsets, dims, dim_mask, ROW=KV_HEADS * D, PAGE=PAGE, BLOCK_N=BLOCK_N, EVEN_D=D == WIDTH,
        PRECISION=PRECISION,
    )  # fmt: skip
    acc, top, total = attend_blocks(
        acc, top, total, queries, k + head * D, v + head * D, table, middle, end, end, lanes,
        scale, offsets, dims, dim_mask, ROW=KV_HEADS * D, PAGE=PAGE, BLOCK_N=BLOCK_N, CAUSAL=False,
        WINDOW=0, EVEN_D=D == WIDTH, PRECISION=PRECISION,
    )  # fmt: skip
    part, lse = finished(acc, top, total)
    heads_at = row * HEADS + head * GROUP + lane
    put_part(part, lse, part_at, lse_at, heads_at, mask, dims, dim_mask, split, slot_size, D)


def prefix_attention(
    q: Tensor,
    kv: LayerKV,
    plan: PrefixPlan,
    scratch: Scratch,
    *,
    scale: float,
    splits: int = PREFIX_SPLITS,
) -> None:
    """Leave each grouped row's part over its prefix in slots 0 … splits − 1 of `scratch`, for
    decode_attention(..., starts=plan.starts, prefix_splits=splits) right after. q [rows,
    heads · head_dim], the same rows as there."""
    rows = len(q)
    _, page_size, kv_heads, head_dim = kv.k.shape
    heads = q.shape[1] // head_dim
    lanes = triton.next_power_of_2(heads // kv_heads)
    scratch.check(rows, splits, 0)
    parts = plan.parts()
    wide = triton.next_power_of_2(head_dim) > 128 or q.dtype == torch.float32
    _prefix[(kv_heads, min(plan.max_tiles, rows), splits)](
        q, kv.k, kv.v, parts["tables"], parts["lengths"], parts["tiles"], parts["first"],
        parts["members"], parts["ends"], scratch.part, scratch.lse,
        q.stride(0), parts["tables"].stride(0), rows * heads, scale * LOG2_E,
        HEADS=heads, KV_HEADS=kv_heads, GROUP=heads // kv_heads, LANES=lanes, D=head_dim,
        WIDTH=max(16, triton.next_power_of_2(head_dim)), PAGE=page_size, M=max(M, lanes),
        BLOCK_N=32 if wide else BLOCK_N, SPLITS=splits, PRECISION=precision(q.dtype),
        num_warps=4, num_stages=2 if wide else 3,
    )  # fmt: skip


def prefix_twin(
    q: Tensor, kv: LayerKV, groups: Sequence[Group], *, scale: float
) -> tuple[Tensor, Tensor]:
    """What the parts of each grouped row come to: [rows, heads, head_dim], and natural
    log-sum-exp [rows, heads] (−inf for rows without a group)."""
    _, page_size, kv_heads, head_dim = kv.k.shape
    heads = q.shape[1] // head_dim
    out = q.new_zeros(len(q), heads, head_dim)
    lse = q.new_full((len(q), heads), float("-inf"))
    for group in groups:
        rows, length = list(group.rows), len(group.pages) * page_size
        table = torch.from_numpy(group.pages).to(q.device)
        keys = gathered(kv.k, table, length).to(q.dtype)
        values = gathered(kv.v, table, length).to(q.dtype)
        mine = q[rows].view(len(rows), heads, head_dim)
        all_seen = torch.full((len(rows),), length - 1, device=q.device)
        out[rows] = attention_twin(mine, keys, values, all_seen, scale)
        wide = keys.repeat_interleave(heads // kv_heads, dim=1)
        lse[rows] = (torch.einsum("rhd,thd->rht", mine, wide) * scale).logsumexp(dim=-1)
    return out, lse
