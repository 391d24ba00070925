"""The GPU's kernels under Triton's interpreter: the tests of tests/gpu over a few small shapes.

In a process of its own, because Triton decides at import whether it compiles or interprets.
"""

from __future__ import annotations

import os
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
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
