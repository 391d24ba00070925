"""The GPU's kernels under Triton's interpreter: the tests of tests/gpu over a few small shapes.

In a process of its own, because Triton decides at import whether it compiles or interprets.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "gpu"


def test_every_kernel_equals_its_twin_in_the_interpreter() -> None:
    triton = pytest.importorskip("triton", reason="Triton is built for Linux alone")
    if [int(part) for part in triton.__version__.split(".")[:2]] < [3, 7]:
        pytest.skip("the interpreter of Triton before 3.7 does not work with today's NumPy")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(FOLDER)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    with_kernels = {
        file.name
        for file in FOLDER.glob("test_*.py")
        if "from engine.kernels.gpu" in file.read_text()
    }
    passed = {name for name in with_kernels if re.search(rf"{name}::.* PASSED", ran.stdout)}
    assert with_kernels
    assert passed == with_kernels, "a file of kernel tests was skipped"


def test_a_run_on_a_gpu_that_is_not_there_fails() -> None:
    environment = {**os.environ, "NEEDS_GPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "PyTorch finds no GPU here" in ran.stdout + ran.stderr
