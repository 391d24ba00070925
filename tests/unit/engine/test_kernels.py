"""Each fast form equals the formula written out."""

from __future__ import annotations

import math

import pytest
import torch

from engine.kernels.activation import silu_mul
from engine.kernels.linear import Linear, can_pack, linear, packed, plain, steady_rows
from engine.kernels.norm import rms_norm
from engine.kernels.rotary import frequencies, rotate, table
from engine.models.config import Rope

PACKED = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(not can_pack(dtype), reason=f"this CPU does not pack {dtype}"),
    )
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("rows", [1, 5, 32, 200])
@pytest.mark.parametrize("biased", [False, True])
def test_a_packed_product_equals_the_plain_one(dtype: torch.dtype, rows: int, biased: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 40).to(dtype)
    bias = torch.randn(96).to(dtype) if biased else None
    x = torch.randn(rows, 40).to(dtype)
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.01}
    torch.testing.assert_close(packed(weight, bias)(x), plain(weight, bias)(x), **close)


SHAPES = [(512, 1408), (256, 704), (96, 40), (64, 4096), (40, 33)]


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_the_same_however_many_stand_beside_it(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator).to(dtype)
    x = torch.randn(100, shape[1], generator=generator).to(dtype)
    multiply = packed(weight)
    whole = multiply(x)
    for rows in (1, 2, 3, 5, 8, 31, 99):
        assert torch.equal(multiply(x[:rows]), whole[:rows])
        assert torch.equal(multiply(x[-rows:]), whole[-rows:])
    ones = torch.cat([multiply(x[row : row + 1]) for row in range(len(x))])
    assert torch.equal(ones, whole)


@pytest.mark.parametrize(("agree_from", "least"), [(1, 1), (2, 2), (3, 3), (5, 8), (64, 1)])
def test_a_product_is_filled_up_to_where_more_rows_change_nothing(
    monkeypatch: pytest.MonkeyPatch, agree_from: int, least: int
) -> None:
    def product(_weight: torch.Tensor, _bias: object) -> Linear:
        return lambda x: x * (1 if len(x) >= agree_from else 2)

    monkeypatch.setattr("engine.kernels.linear._reordered", product)
    steady_rows.cache_clear()
    try:
        assert steady_rows(8, 6, torch.float32, 1) == least
    finally:
        steady_rows.cache_clear()


def test_a_packed_product_does_not_need_the_weight_any_more() -> None:
    weight = torch.randn(8, 8)
    x = torch.randn(2, 8)
    multiply = linear(weight)
    before = multiply(x)
    weight.zero_()
    if can_pack(weight.dtype):
        assert torch.equal(multiply(x), before)


def test_a_cpu_that_refuses_to_reorder_multiplies_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_weight: torch.Tensor, _bias: object) -> Linear:
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr("engine.kernels.linear._reordered", refuse)
    can_pack.cache_clear()
    try:
        weight, x = torch.randn(8, 4).bfloat16(), torch.randn(3, 4).bfloat16()
        torch.testing.assert_close(linear(weight)(x), x @ weight.T)
        assert not can_pack(torch.bfloat16)
    finally:
        can_pack.cache_clear()


def test_a_type_that_cannot_be_packed_is_multiplied_plainly() -> None:
    weight = torch.randn(8, 4, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(linear(weight)(x), x @ weight.T)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x, weight = torch.randn(3, 16), torch.randn(16)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)


def test_silu_mul_gates_the_second_half_with_the_first() -> None:
    x = torch.randn(3, 10)
    gate, up = x[:, :5], x[:, 5:]
    torch.testing.assert_close(silu_mul(x), gate * torch.sigmoid(gate) * up)


def test_a_rotation_turns_each_pair_by_position_times_frequency() -> None:
    rope = Rope(theta=100.0)
    rotation = table(rope, 8, 50, torch.float32).at(torch.tensor([7, 31]))
    x = torch.randn(2, 3, 8)
    turned = rotate(x, rotation)
    for row, position in enumerate((7, 31)):
        for pair in range(4):
            angle = position * 100.0 ** (-2 * pair / 8)
            a, b = x[row, :, pair], x[row, :, pair + 4]
            cos, sin = math.cos(angle), math.sin(angle)
            torch.testing.assert_close(turned[row, :, pair], a * cos - b * sin)
            torch.testing.assert_close(turned[row, :, pair + 4], b * cos + a * sin)


def test_linear_scaling_divides_every_frequency() -> None:
    plain_, scaled = (
        frequencies(Rope(kind=kind, factor=4.0), 16) for kind in ("default", "linear")
    )
    torch.testing.assert_close(scaled, plain_ / 4)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    rope = Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    plain_, scaled = frequencies(Rope(500000.0), 128), frequencies(rope, 128)
    wavelengths = 2 * math.pi / plain_
    short, long = wavelengths < 8192 / 4, wavelengths > 8192 / 1
    torch.testing.assert_close(scaled[short], plain_[short])
    torch.testing.assert_close(scaled[long], plain_[long] / 8)
    between = scaled[~short & ~long] / plain_[~short & ~long]
    assert len(between) > 0
    assert bool(((between > 1 / 8) & (between < 1)).all())
