"""Where the kernel tests run: on the GPU, or on the CPU under Triton's interpreter.

`make gpu-test` runs them on a GPU, over a wide grid of shapes. TRITON_INTERPRET=1 runs them without
one, over a few small shapes (tests/unit/engine/test_gpu_kernels.py does). pytest.ini here makes the
folder stand alone: a machine with a GPU needs torch, triton, numpy, safetensors and pytest only.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.gpu_cases import DTYPES, INTERPRETED


@pytest.fixture
def device() -> str:
    if INTERPRETED:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen
