"""Kernels that work row by row equal their twins: norms, activation, rotation and store, argmax."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the GPU's kernels are written in Triton")

from engine.kernels.gpu.activation import silu_mul, silu_mul_twin
from engine.kernels.gpu.greedy import GreedyScratch, greedy, greedy_twin
from engine.kernels.gpu.norm import add_rms_norm, add_rms_norm_twin, rms_norm, rms_norm_twin
from engine.kernels.gpu.rope import rope_store, rope_table, rope_twin
from engine.models.config import Rope
from engine.models.weights import HeadNorms
from tests.support.gpu_cases import (
    DTYPES,
    INTERPRETED,
    Heads,
    assert_close,
    grid,
    layer_kv,
    poisoned,
    randn,
)

WIDTHS = [(1, 96), (3, 1024), (17, 4096), (5, 1000)]
if INTERPRETED:
    WIDTHS = [(1, 96), (3, 1000)]


@pytest.mark.parametrize(("rows", "hidden"), WIDTHS)
def test_a_norm_is_the_formula(rows: int, hidden: int, dtype: torch.dtype, device: str) -> None:
    x = randn(rows, hidden + 8, dtype=dtype, device=device, seed=1)[:, :hidden]
    weight = randn(hidden, dtype=dtype, device=device, seed=2)
    out = poisoned(rows, hidden, dtype=dtype, device=device)
    rms_norm(x, weight, 1e-6, out)
    assert_close(out, rms_norm_twin(x.double(), weight.double(), 1e-6), dtype)


@pytest.mark.parametrize(("rows", "hidden"), WIDTHS)
def test_a_sum_is_rounded_before_it_is_normed(
    rows: int, hidden: int, dtype: torch.dtype, device: str
) -> None:
    delta = randn(rows, hidden, dtype=dtype, device=device, seed=1)
    residual = randn(rows, hidden, dtype=dtype, device=device, seed=2)
    weight = randn(hidden, dtype=dtype, device=device, seed=3)
    out = poisoned(rows, hidden, dtype=dtype, device=device)
    new = (residual.double() + delta.double()).to(dtype)
    add_rms_norm(delta, residual, weight, 1e-5, out)
    torch.testing.assert_close(residual, new, rtol=1e-6, atol=1e-6)
    assert_close(out, rms_norm_twin(residual.double(), weight.double(), 1e-5), dtype)
    twin = add_rms_norm_twin(delta.double(), (new - delta).double(), weight.double(), 1e-5)
    assert twin[0].shape == twin[1].shape == out.shape


@pytest.mark.parametrize(("rows", "ffn"), [(1, 96), (7, 1408), (3, 3072)])
def test_an_activation_is_the_formula(rows: int, ffn: int, dtype: torch.dtype, device: str) -> None:
    gate_up = randn(rows, 2 * ffn, dtype=dtype, device=device, seed=4)
    out = poisoned(rows, ffn, dtype=dtype, device=device)
    silu_mul(gate_up, out)
    assert_close(out, silu_mul_twin(gate_up.double()), dtype)


ROPES = [
    Rope(),
    Rope(theta=1e6, kind="linear", factor=4.0),
    Rope(5e5, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64),
]


@pytest.mark.parametrize(
    ("normed", "rope", "shape", "dtype"),
    grid(
        [False, True],
        ROPES,
        [Heads(4, 2, 64), Heads(7, 1, 128), Heads(3, 3, 80), Heads(32, 8, 128)],
        DTYPES,
        most=32,
    ),
    ids=str,
)
def test_a_row_is_normed_rotated_and_stored_where_its_slot_says(
    normed: bool, rope: Rope, shape: Heads, dtype: torch.dtype, device: str
) -> None:
    rows, context, page_size = 6, 96, 16
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    qkv = randn(rows, width + 16, dtype=dtype, device=device, seed=5)[:, :width]
    positions = torch.tensor([0, 95, 1, 17, 50, 0], dtype=torch.int32, device=device)
    slots = torch.tensor([16, 5, 63, 40, 41, -1], dtype=torch.int32, device=device)
    pool = poisoned(2, 4, page_size, shape.kv_heads, shape.head_dim, dtype=dtype, device=device)
    kv = layer_kv(pool[0], pool[1])
    weights = randn(2, shape.head_dim, dtype=dtype, device=device, seed=6)
    norms = HeadNorms(weights[0], weights[1], 1e-6) if normed else None
    table = rope_table(rope, shape.head_dim, context, device)
    wanted = rope_twin(qkv.double(), positions, table.double(), shape.heads, shape.kv_heads, norms)
    rope_store(qkv, positions, slots, table, kv, shape.heads, norms)
    assert_close(qkv, wanted, dtype)
    kept = slots[:-1].long()
    q_size, kv_size = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    assert torch.equal(kv.k_slots[kept], qkv[:-1, q_size : q_size + kv_size])
    assert torch.equal(kv.v_slots[kept], qkv[:-1, q_size + kv_size :])
    assert int((~kv.k_slots.isnan()).any(dim=1).sum()) == len(kept), "only its own slots"


@pytest.mark.parametrize(("rows", "vocab"), [(1, 50), (3, 12288), (4, 9000)])
def test_the_lowest_of_the_likeliest_tokens_wins(
    rows: int, vocab: int, dtype: torch.dtype, device: str
) -> None:
    scratch = GreedyScratch.make(rows, vocab, device)
    for seed in range(3):  # again on the same scratch: its counters are back at zero
        logits = randn(rows, vocab, dtype=dtype, device=device, seed=seed)
        logits[:, -3:] = logits.max() + 1
        logits[0, 7] = logits[0, -1]
        tokens = torch.full((rows,), -1, dtype=torch.int32, device=device)
        greedy(logits, tokens, scratch)
        assert torch.equal(tokens, greedy_twin(logits))
        assert tokens.tolist() == [7, *([vocab - 3] * (rows - 1))]


def test_a_row_of_no_numbers_still_gives_a_token(device: str) -> None:
    logits = poisoned(2, 300, dtype=torch.float32, device=device)
    tokens = torch.full((2,), -1, dtype=torch.int32, device=device)
    greedy(logits, tokens, GreedyScratch.make(2, 300, device))
    assert all(0 <= token < 300 for token in tokens.tolist())
