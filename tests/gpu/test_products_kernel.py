"""Products of one row equal their twin, with all that is fused around them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the GPU's kernels are written in Triton")

from engine.kernels.gpu.embed import embed, embed_twin
from engine.kernels.gpu.gemv import skinny, skinny_fits, skinny_twin
from tests.support.gpu_cases import DTYPES, INTERPRETED, assert_close, grid, poisoned, randn

SIZES = [(96, 64), (130, 1000), (4096, 4096), (6144, 1024), (17408, 512)]
FUSED = ["nothing", "norm", "bias", "residual", "norm silu", "bias silu", "norm bias residual"]
if INTERPRETED:
    SIZES = [(48, 96), (34, 200)]


@pytest.mark.parametrize(("size", "fused", "dtype"), grid(SIZES, FUSED, DTYPES, most=64), ids=str)
def test_a_product_is_its_formula(
    size: tuple[int, int], fused: str, dtype: torch.dtype, device: str
) -> None:
    (n, k), silu = size, "silu" in fused
    x = randn(1, k, dtype=dtype, device=device, seed=1)
    weight = randn(n, k, dtype=dtype, device=device, seed=2) * k**-0.5
    half = n // 2 if silu else n
    parts = {
        "norm": randn(k, dtype=dtype, device=device, seed=3),
        "bias": randn(n, dtype=dtype, device=device, seed=4),
        "residual": randn(1, half, dtype=dtype, device=device, seed=5),
    }
    chosen = {name: part for name, part in parts.items() if name in fused}
    exact = {name: part.double() for name, part in chosen.items()}
    out = chosen.get("residual", poisoned(1, half, dtype=dtype, device=device))
    skinny(x, weight, out, **chosen, eps=1e-5, silu_mul=silu)
    wanted = skinny_twin(x.double(), weight.double(), **exact, eps=1e-5, silu_mul=silu)
    assert_close(out, wanted, dtype)


def test_more_rows_are_refused() -> None:
    x = torch.zeros(2, 16)
    assert not skinny_fits(2, x.dtype)
    with pytest.raises(ValueError, match="one row, not 2"):
        skinny(x, torch.zeros(16, 16), x)


@pytest.mark.parametrize("hidden", [96, 4096])
def test_a_token_that_only_the_device_knows_is_embedded(
    hidden: int, dtype: torch.dtype, device: str
) -> None:
    weight = randn(20, hidden, dtype=dtype, device=device, seed=1)
    source = torch.tensor([3, -1, 19, -4, 0], dtype=torch.int32, device=device)
    drawn = torch.tensor([7, 8, 9, 10], dtype=torch.int32, device=device)
    out = poisoned(5, hidden, dtype=dtype, device=device)
    embed(source, drawn, weight, out)
    assert torch.equal(out, embed_twin(source, drawn, weight))
    assert torch.equal(out, weight[[3, 7, 19, 10, 0]])
