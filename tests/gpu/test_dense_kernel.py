"""cuDNN's attention over one prompt's own rows equals the twin, whatever padding is behind."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the GPU's kernels are written in Triton")

from engine.kernels.gpu.attend import attention_twin
from engine.kernels.gpu.dense import dense_attention, dense_fits
from tests.support.gpu_cases import INTERPRETED, Heads, assert_close, randn


@pytest.mark.parametrize("rows", [64, 300, 1024])
@pytest.mark.parametrize("shape", [Heads(8, 8, 128), Heads(14, 2, 64), Heads(32, 8, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_prompt_attends_to_itself(
    rows: int, shape: Heads, dtype: torch.dtype, device: str
) -> None:
    if INTERPRETED or not dense_fits(dtype, shape.head_dim, torch.device(device)):
        pytest.skip("cuDNN's kernel wants a Hopper GPU or later")
    parts = (shape.heads, shape.kv_heads, shape.kv_heads)
    qkv = randn(rows, sum(parts) * shape.head_dim, dtype=dtype, device=device, seed=1)
    real = rows - 30
    qkv[real:] *= 1000  # padding
    mixed = dense_attention(qkv, shape.heads, shape.kv_heads, shape.head_dim**-0.5)
    q, k, v = qkv[:real].double().view(real, sum(parts), -1).split(parts, dim=1)
    seen = torch.arange(real, device=device)
    wanted = attention_twin(q, k, v, seen, shape.head_dim**-0.5)
    assert mixed.is_contiguous()
    assert_close(mixed[:real], wanted.flatten(1), dtype)


def test_it_is_not_offered_without_a_gpu_or_in_fp32() -> None:
    assert not dense_fits(torch.bfloat16, 128, torch.device("cpu"))
    assert not dense_fits(torch.float32, 128, torch.device("cuda"))
