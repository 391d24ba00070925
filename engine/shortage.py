"""Which errors of a step say that memory ran out, and nothing else is wrong.

The allocator has a class for it. What asks the driver itself (a library's workspace, a kernel that
is loaded, a graph) says so in words, as the CPU's allocator does. Whether the device still computes
after that is found out by `Runner.recover`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames

import torch

from engine.sequence import OutOfMemory

SAID = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")


@contextmanager
def telling_shortage() -> Iterator[None]:
    """Raises OutOfMemory for an error that says no more than that. What the step had made is let
    go of: the frames of its traceback would hold it for as long as somebody keeps the error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        clear_frames(error.__traceback__)
        raise OutOfMemory(first_line(error)) from error


def lacks_memory(error: BaseException) -> bool:
    """Whether a smaller step might do what this one could not."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID)


def first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]
