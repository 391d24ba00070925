"""Which decode rows read a prefix together: asked of the tree when the rows change, not at each
step.

While the same sequences decode in the same order, what they share stays the same: a lease moves
only when its prompt is computed, or when the sequence leaves. So the answer is kept until then, and
a steady decode step pays one list comparison.

A group must save enough to pay for its launch: a few pages, or rows, are read faster one by one.
"""

from __future__ import annotations

import torch

from engine.kernels.gpu.prefix import PrefixPlan, choose_groups
from engine.sequence import Sequence
from radix.shared import shared

MAX_GROUPS = 16
MIN_SAVED = 256
"""Page reads a step and layer that a group must save, all groups together."""


class Prefixes:
    """Keeps a `PrefixPlan` up to date. Owned by one runner."""

    def __init__(self, plan: PrefixPlan) -> None:
        self._plan = plan
        self._rows: list[Sequence] = []
        self._found = False
        on_gpu = plan.device.device.type == "cuda"
        self._uploaded = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def plan(self, rows: list[Sequence]) -> bool:
        """Whether these decode rows, in this order, share prefixes worth reading together. Uploads
        which on the current stream when they changed."""
        if rows == self._rows:
            return self._found
        self._rows = rows
        self._found = len(rows) > 1 and self._find(rows)
        return self._found

    def _find(self, rows: list[Sequence]) -> bool:
        leased = [(at, s.lease) for at, s in enumerate(rows) if s.lease is not None]
        segments = shared([lease for _, lease in leased])
        if sum(segment.saved for segment in segments) < MIN_SAVED:
            return False
        if len(leased) < len(rows):
            return False
        groups = choose_groups(segments, max_groups=MAX_GROUPS)
        if sum(group.saved for group in groups) < MIN_SAVED:
            return False
        if self._uploaded is not None:
            self._uploaded.synchronize()  # the pinned copy of the plan before may still be read
        self._plan.fill(groups)
        self._plan.upload()
        if self._uploaded is not None:
            self._uploaded.record()
        return True

    def forget(self) -> None:
        """Ask again at the next step."""
        self._rows = []
        self._found = False
