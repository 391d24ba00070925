"""Each row of attention by itself: a whole tensor's norm hides the tail of one long row.

At the shapes that are served, at page borders, and in each number of splits that the engine asks
for. Inputs are new in each run (tests/support/gpu_cases.py).
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the GPU's kernels are written in Triton")

from engine.kernels.gpu.decode import decode_attention, decode_twin
from engine.kernels.gpu.extend import extend_attention, extend_twin
from tests.gpu.test_attention import scale_of, scratch_for
from tests.support.gpu_cases import (
    INTERPRETED,
    SEED,
    Heads,
    exact,
    paged,
    poisoned,
    randn,
    relative_error,
)

SHAPES = [Heads(32, 8, 128), Heads(16, 8, 128), Heads(14, 2, 64)]
LENGTHS = [
    [2500, 3, 1100],
    [1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 513, 1023, 1025, 4097, 0],
]
CHUNKS = [(33, 0), (1, 4000), (130, 15), (0, 0), (16, 64), (1, 0), (65, 2047)]
"""(rows, cached tokens before them)."""
LIMITS = {torch.bfloat16: 1.5e-2, torch.float16: 3e-3}
"""Of one row; the tail of 32 of 2,500 tokens is worth 0.1."""
if INTERPRETED:
    SHAPES, LENGTHS = [Heads(4, 2, 32)], [[300, 3], [129, 16, 17, 0, 1]]
    CHUNKS, LIMITS = [(9, 0), (1, 80), (20, 15), (0, 0)], {torch.float16: 3e-3}


@pytest.fixture
def seed() -> int:
    return SEED


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("splits", [4, 8, 16, 32])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_row_is_attended_to_its_last_token(
    shape: Heads, lengths: list[int], splits: int, dtype: torch.dtype, device: str, seed: int
) -> None:
    case = paged(lengths, 16, shape, dtype, device, seed)
    rows, width = len(lengths), shape.heads * shape.head_dim
    q = randn(rows, width, dtype=dtype, device=device, seed=seed + 1)
    out = poisoned(rows, width, dtype=dtype, device=device)
    decode_attention(
        q, case.kv, case.tables, case.lengths, out, scratch_for(rows, shape, device),
        splits=splits, scale=scale_of(shape),
    )  # fmt: skip
    wanted = decode_twin(
        q.double(), exact(case.kv), case.tables, case.lengths, scale=scale_of(shape)
    )
    for row, length in enumerate(lengths):
        if length == 0:
            assert not out[row].any()
        else:
            assert relative_error(out[row], wanted[row]) < LIMITS[dtype], (row, length, seed)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("splits", [1, 2, 8, 32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_row_of_a_prompt_is_attended_to_itself(
    shape: Heads, splits: int, dtype: torch.dtype, device: str, seed: int
) -> None:
    case = paged([sum(chunk) for chunk in CHUNKS], 16, shape, dtype, device, seed)
    ends = torch.tensor([rows for rows, _ in CHUNKS], dtype=torch.int32).cumsum(0)
    starts = torch.cat((torch.zeros(1), ends)).to(torch.int32)
    rows, width = int(starts[-1]), shape.heads * shape.head_dim
    q = randn(rows, width, dtype=dtype, device=device, seed=seed + 1)
    out = poisoned(rows, width, dtype=dtype, device=device)
    extend_attention(
        q, case.kv, case.tables, starts.to(device), case.lengths, out,
        scale=scale_of(shape), splits=splits, scratch=scratch_for(2 * rows, shape, device),
    )  # fmt: skip
    wanted = extend_twin(
        q.double(), exact(case.kv), case.tables, starts, case.lengths, scale=scale_of(shape)
    )
    errors = [relative_error(out[row], wanted[row]) for row in range(rows)]
    assert max(errors) < LIMITS[dtype], (errors.index(max(errors)), seed)
