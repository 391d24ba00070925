"""Where the kernel tests run: on the GPU, or on the CPU under Triton's interpreter.

`make gpu-test` runs them on a GPU, over a wide grid of shapes. TRITON_INTERPRET=1 runs them without
one, over a few small shapes (tests/unit/engine/test_gpu_kernels.py does). Under NEEDS_GPU=1, which
`make gpu-test` sets, a run in which no GPU can be used fails: it would skip all that it is for.
pytest.ini here makes the folder stand alone: a machine with a GPU needs torch, triton, numpy,
safetensors and pytest only.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.support.gpu_cases import DTYPES, INTERPRETED, SEED


def pytest_sessionstart() -> None:
    needed = os.environ.get("NEEDS_GPU") == "1"
    if needed and not INTERPRETED and not torch.cuda.is_available():
        pytest.exit(
            "PyTorch finds no GPU here: see that `nvidia-smi` lists one and that torch is built "
            "for CUDA, or run the kernels on the CPU with TRITON_INTERPRET=1",
            returncode=2,
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"SEED={SEED} repeats these inputs")


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
