"""Runs a compiled function on the OpenMP threads that torch computes with.

A pool of threads beside torch's own would fight for the same cores: OpenMP's threads spin for a
while after each product, waiting for the next. So a kernel that is compiled here is handed to the
team that is already awake, through the entry point that compilers call (GNU's `GOMP_parallel`,
which LLVM's and Intel's libraries offer too). Where there is none the calling thread works alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeAlias

Worker: TypeAlias = int
"""Address of a C function void(void *), which shares the work out by itself."""

Team = Callable[[Worker, int, int], None]
"""(worker, address of its arguments, threads): at most so many threads call it once each; returns
when all have."""


def torch_team() -> Team:
    """torch's own threads."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no CDLL(None)
        return alone
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None

    def run(worker: Worker, arguments: int, threads: int) -> None:
        parallel(worker, arguments, threads, 0)

    return run


def alone(worker: Worker, arguments: int, _threads: int) -> None:
    """The calling thread does it all."""
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(worker)(arguments)
