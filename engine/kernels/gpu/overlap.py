"""Launches that overlap: a kernel starts while the one before it ends.

A decode step of one request is some two hundred kernels of a few microseconds, and between two of
them lie the end of the last programs, the launch and the first read from memory: as long as the
work itself. With programmatic dependent launch (Hopper and later, also in a captured graph) the
programs of the next kernel take their places as soon as all of this one have theirs, and may read
what no kernel writes, the weights, before they wait for what this one leaves.

    let_next()       the next kernel may take its places       read weights
    await_last()     all kernels before this one are done      read and write anything

Nobody returns without `await_last`, so whoever is done knows that all before it are, too. A kernel
of somebody else (cuBLAS) in between is ordered as ever.

Source: CUDA programming guide, programmatic dependent launch.
"""

from __future__ import annotations

from functools import cache

import torch
from triton.language.extra.cuda import gdc_launch_dependents as let_next
from triton.language.extra.cuda import gdc_wait as await_last

__all__ = ["await_last", "let_next", "overlapping"]


@cache
def overlapping(device: torch.device) -> dict[str, bool]:
    """The launch options: OVERLAP for the kernel, and what Triton calls the same."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        return {"OVERLAP": True, "launch_pdl": True}
    return {"OVERLAP": False}
