"""Where the kernel tests run: on the GPU, or on the CPU under Triton's interpreter.

`make gpu-test` runs them on a GPU, over the whole grid of shapes. TRITON_INTERPRET=1 runs them
without one, over a few small shapes (tests/unit/engine/test_gpu_kernels.py does).
"""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def device() -> str:
    if torch.cuda.is_available() and not INTERPRETED:
        return "cuda"
    if INTERPRETED:
        pytest.importorskip("triton")
        return "cpu"
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1")


@pytest.fixture(params=[torch.bfloat16, torch.float32, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if INTERPRETED and request.param == torch.bfloat16:
        pytest.skip("the interpreter multiplies bf16 by its bits; fp16 takes the same path")
    chosen: torch.dtype = request.param
    return chosen
