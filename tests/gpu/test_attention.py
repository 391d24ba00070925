"""Attention over pages equals its twin: decode, prefill, shared prefixes, and their seams."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the GPU's kernels are written in Triton")

from engine.kernels.gpu import decode
from engine.kernels.gpu.attend import Scratch
from engine.kernels.gpu.decode import decode_attention, decode_splits, decode_twin
from engine.kernels.gpu.extend import extend_attention, extend_splits, extend_twin
from engine.kernels.gpu.prefix import (
    Group,
    PrefixPlan,
    choose_groups,
    prefix_attention,
    prefix_twin,
)
from radix import Shared
from tests.support.gpu_cases import (
    DTYPES,
    INTERPRETED,
    Heads,
    Paged,
    assert_close,
    exact,
    generator_of,
    grid,
    paged,
    poisoned,
    randn,
)

SHAPES = [Heads(4, 1, 64), Heads(8, 8, 128), Heads(14, 2, 64), Heads(6, 2, 80), Heads(32, 8, 128)]
PAGE_SIZES = [16, 8, 64, 1]
if INTERPRETED:
    SHAPES, PAGE_SIZES = [Heads(4, 2, 32), Heads(7, 1, 24)], [16, 4]

LENGTHS = [[1], [37, 1, 0, 128, 300, 64, 65], [2500, 3, 1100], [129] * 40]
if INTERPRETED:
    LENGTHS = [[1], [37, 0, 130], [300, 3]]


def scratch_for(rows: int, shape: Heads, device: str) -> Scratch:
    scratch = Scratch.make(rows, shape.heads, shape.kv_heads, shape.head_dim, device)
    scratch.part.fill_(float("nan"))
    scratch.lse.fill_(float("nan"))
    return scratch


def scale_of(shape: Heads) -> float:
    return float(shape.head_dim**-0.5)


@pytest.mark.parametrize(
    ("shape", "page_size", "lengths", "splits", "window", "dtype"),
    grid(SHAPES, PAGE_SIZES, LENGTHS, [4, 8, 16, 32], [0, 50], DTYPES),
    ids=str,
)
def test_decode_reads_each_row_s_own_pages(
    shape: Heads,
    page_size: int,
    lengths: list[int],
    splits: int,
    window: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    case = paged(lengths, page_size, shape, dtype, device, seed=1)
    rows, width = len(lengths), shape.heads * shape.head_dim
    qkv = randn(rows, width + 32, dtype=dtype, device=device, seed=2)
    q, out = qkv[:, :width], poisoned(rows, width, dtype=dtype, device=device)
    scratch = scratch_for(rows * splits, shape, device)
    for _ in range(2):  # the second time on used scratch
        decode_attention(
            q, case.kv, case.tables, case.lengths, out, scratch,
            splits=splits, scale=scale_of(shape), window=window,
        )  # fmt: skip
    wanted = decode_twin(
        q.double(), exact(case.kv), case.tables, case.lengths, scale=scale_of(shape), window=window
    )
    assert_close(out, wanted, dtype)
    assert not scratch.counters.any()


CHUNKS = [  # (new tokens, context before them)
    [(70, 0)],
    [(1, 40)],
    [(5, 600)],
    [(33, 0), (1, 200), (130, 15), (0, 0), (16, 64)],
    [(700, 0), (300, 900)],
]
if INTERPRETED:
    CHUNKS = [[(20, 0)], [(5, 600)], [(9, 0), (1, 80), (20, 15), (0, 0)]]


@pytest.mark.parametrize(
    ("shape", "page_size", "chunks", "splits", "window", "dtype"),
    grid(SHAPES, PAGE_SIZES, CHUNKS, [1, 4], [0, 50, 0], DTYPES),
    ids=str,
)
def test_prefill_attends_to_what_came_before_and_to_itself(
    shape: Heads,
    page_size: int,
    chunks: list[tuple[int, int]],
    splits: int,
    window: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    case = paged([new + old for new, old in chunks], page_size, shape, dtype, device, seed=3)
    starts = torch.tensor([0, *np.cumsum([new for new, _ in chunks])], dtype=torch.int32)
    rows, width = int(starts[-1]), shape.heads * shape.head_dim
    q = randn(rows + 3, width, dtype=dtype, device=device, seed=4)  # three rows of padding
    out = poisoned(rows + 3, width, dtype=dtype, device=device)
    scratch = scratch_for(rows + 3, shape, device)
    for _ in range(2):
        extend_attention(
            q, case.kv, case.tables, starts.to(device), case.lengths, out,
            scale=scale_of(shape), splits=splits, scratch=scratch, window=window,
        )  # fmt: skip
    wanted = extend_twin(
        q.double(), exact(case.kv), case.tables, starts, case.lengths,
        scale=scale_of(shape), window=window,
    )  # fmt: skip
    assert_close(out[:rows], wanted[:rows], dtype)
    assert bool(out[rows:].isnan().all()), "padding rows are left alone"
    assert not scratch.counters.any()


def shared_case(
    groups: list[tuple[int, int]], own: list[int], page_size: int, shape: Heads,
    dtype: torch.dtype, device: str,
) -> tuple[Paged, list[Group]]:  # fmt: skip
    """Rows whose tables begin with their group's pages. groups: (members, shared tokens)."""
    prefixes = [tokens for _, tokens in groups]
    of_row = [g for g, (members, _) in enumerate(groups) for _ in range(members)]
    of_row += [-1] * (len(own) - len(of_row))
    order = torch.randperm(len(own), generator=generator_of(5)).tolist()
    of_row = [of_row[i] for i in order]  # members are scattered over the batch
    base = paged([*prefixes, *own], page_size, shape, dtype, device, seed=6)
    tables = torch.zeros(len(own), 1 + sum(base.tables.shape[1:]) * 2, dtype=torch.int32)
    lengths = []
    for row, group in enumerate(of_row):
        shared = prefixes[group] if group >= 0 else 0
        count = shared // page_size
        mine = base.tables[len(groups) + row].cpu()
        tables[row, :count] = base.tables[max(group, 0), :count].cpu()
        tables[row, count : count + len(mine)] = mine
        lengths.append(shared + own[row])
    plans = [
        Group(
            tuple(row for row, g in enumerate(of_row) if g == group),
            base.tables[group, : tokens // page_size].cpu().numpy(),
        )
        for group, tokens in enumerate(prefixes)
    ]
    device_lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
    return Paged(base.kv, tables.to(device), device_lengths), plans


GROUPS = [
    ([(6, 256)], [5, 1, 70, 33, 16, 17]),
    ([(3, 64), (20, 320)], [9] * 12 + [100] * 12),
    ([(2, 64)], [1, 2]),
    ([], [40, 2]),
]
if INTERPRETED:
    GROUPS = [([(3, 128)], [5, 1, 70]), ([(2, 64), (3, 128)], [9, 9, 70, 3, 3, 3]), ([], [2])]


@pytest.mark.parametrize(
    ("shape", "page_size", "case", "dtype"),
    grid(SHAPES, [16, 64], GROUPS, DTYPES, most=32),
    ids=str,
)
def test_a_shared_prefix_is_merged_with_each_row_s_own_context(
    shape: Heads,
    page_size: int,
    case: tuple[list[tuple[int, int]], list[int]],
    dtype: torch.dtype,
    device: str,
) -> None:
    groups, own = case
    batch, plans = shared_case(groups, own, page_size, shape, dtype, device)
    rows, width = len(own), shape.heads * shape.head_dim
    plan = PrefixPlan.make(
        rows + 2, 3, batch.tables.shape[1], page_size=page_size, heads=shape.heads,
        kv_heads=shape.kv_heads, device=device,
    )  # fmt: skip
    plan.fill(plans)
    plan.upload()
    q = randn(rows, width, dtype=dtype, device=device, seed=7)
    out = poisoned(rows, width, dtype=dtype, device=device)
    scratch = scratch_for(rows, shape, device)
    for _ in range(2):
        prefix_attention(q, batch.kv, plan, scratch, scale=scale_of(shape), splits=4)
        decode_attention(
            q, batch.kv, batch.tables, batch.lengths, out, scratch,
            splits=4, scale=scale_of(shape), starts=plan.starts, prefix_splits=4,
        )  # fmt: skip
    wanted = decode_twin(
        q.double(), exact(batch.kv), batch.tables, batch.lengths, scale=scale_of(shape)
    )
    assert_close(out, wanted, dtype)
    part, lse = prefix_twin(q.double(), exact(batch.kv), plans, scale=scale_of(shape))
    slot = scratch.lse[: 4 * rows * shape.heads].view(4, rows, shape.heads)
    for group in plans:
        found = torch.logsumexp(slot[:, list(group.rows)].double() * np.log(2), dim=0)
        assert_close(found, lse[list(group.rows)], dtype)
        assert part[list(group.rows)].isfinite().all()


def test_the_split_of_a_batch_depends_on_its_size_alone() -> None:
    assert decode_splits(1, 8, 132) == 32
    assert decode_splits(128, 8, 132) == decode.LEAST_SPLITS
    assert extend_splits(8192, 32, 8, 132) == 1
    assert extend_splits(16, 32, 8, 132) == 32


def test_scratch_that_is_too_small_is_refused() -> None:
    scratch = Scratch.make(4, 8, 2, 64, "cpu")
    with pytest.raises(ValueError, match="larger max_rows"):
        scratch.check(rows=2000, slots=4, counters=8)


def segment(first_page: int, pages: list[int], members: tuple[int, ...]) -> Shared:
    return Shared(first_page, np.array(pages, dtype=np.int32), members)


def test_nested_segments_become_the_groups_that_save_most() -> None:
    segments = [
        segment(0, list(range(10)), (0, 1, 2, 3, 4)),
        segment(10, list(range(20, 60)), (1, 2, 3)),
        segment(50, [70], (1, 2)),
    ]
    groups = choose_groups(segments, max_groups=4)
    assert [group.rows for group in groups] == [(1, 2, 3), (0, 4)]
    assert groups[0].pages.tolist() == [*range(10), *range(20, 60)]
    assert groups[0].saved == 100
    assert [group.rows for group in choose_groups(segments, max_groups=1)] == [(1, 2, 3)]
    assert choose_groups(segments, max_groups=4, min_pages=60) == []


def test_more_groups_than_there_is_room_for_are_refused() -> None:
    plan = PrefixPlan.make(8, 1, 4, page_size=16, heads=4, kv_heads=2, device="cpu")
    group = Group((0, 1), np.array([1], dtype=np.int32))
    with pytest.raises(ValueError, match="room for 1"):
        plan.fill([group, SimpleNamespace(rows=(2, 3), pages=group.pages)])
