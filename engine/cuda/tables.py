"""Block tables that stay on the device: one row a sequence, changed only where its pages change.

Problem. 128 contexts of 8k tokens have 65,000 page numbers. Sent anew with each step they cost more
host time than the step's launch; a decode step adds a page to one sequence in sixteen.

Choice. Each sequence that takes part in steps has a row; the host keeps a pinned copy. A page that
a decode adds travels with the step's block and is written by the graph. A new or changed prompt's
row is copied from the pinned copy, one copy a prompt.

A row is lent to a sequence until another needs it: the one that was used longest ago goes, never
one of this step or the one in flight, so twice as many rows as run at a time are enough. The last
row is nobody's: padding reads and writes it.

Rejected: a row index in the sequence (the scheduler's sequences know nothing of a device).
"""

from __future__ import annotations

import numpy as np
import torch

from engine.sequence import Sequence


class _Row:
    __slots__ = ("count", "moved", "number", "used")

    def __init__(self, number: int) -> None:
        self.number = number
        self.moved = -1
        self.count = 0
        self.used = -1


class Tables:
    """Owned by one runner."""

    def __init__(self, max_running: int, max_pages: int, device: torch.device) -> None:
        """`max_running`: sequences in one step at most; `max_pages`: of one sequence."""
        rows = 2 * max_running + 1
        self.device = torch.zeros((rows, max_pages), dtype=torch.int32, device=device)
        self._host = torch.zeros(
            (rows, max_pages), dtype=torch.int32, pin_memory=device.type == "cuda"
        )
        self._mirror = self._host.numpy()
        self._width = max_pages
        self._rows: dict[Sequence, _Row] = {}
        self._free = list(range(rows - 2, -1, -1))
        self.nobody = rows - 1
        self._clock = 0
        self.updates_at: list[int] = []
        """Flat entries that the step's block must change …"""
        self.updates: list[int] = []
        """… and to what."""

    def begin(self) -> None:
        """A new step."""
        self._clock += 1
        self.updates_at = []
        self.updates = []

    def row(self, sequence: Sequence, *, grows: bool = False) -> int:
        """The row of a sequence in this step, its pages brought up to date: one more of what
        `grows` goes into `updates`, anything else is copied now, on the current stream."""
        row = self._rows.get(sequence)
        if row is None:
            row = self._rows[sequence] = self._lend()
        row.used = self._clock
        pages = sequence.pages
        if row.moved != sequence.moved or len(pages) < row.count:
            self._copy(row, pages, 0)
            row.moved = sequence.moved
        elif grows and len(pages) == row.count + 1:
            self.updates_at.append(row.number * self._width + row.count)
            self.updates.append(pages[-1])
            self._mirror[row.number, row.count] = pages[-1]
        elif len(pages) > row.count:
            self._copy(row, pages, row.count)
        row.count = len(pages)
        return row.number

    def _copy(self, row: _Row, pages: list[int], first: int) -> None:
        where = slice(first, len(pages))
        self._mirror[row.number, where] = np.array(pages[where], dtype=np.int32)
        self.device[row.number, where].copy_(self._host[row.number, where], non_blocking=True)

    def _lend(self) -> _Row:
        if not self._free:
            idle = [(row.used, s) for s, row in self._rows.items() if row.used < self._clock - 1]
            idle.sort(key=lambda entry: entry[0])
            for _, sequence in idle[: max(1, len(idle) // 2)]:
                self._free.append(self._rows.pop(sequence).number)
        return _Row(self._free.pop())

    def forget(self) -> None:
        """All rows are free: what the device holds is not known any more."""
        self._free += [row.number for row in self._rows.values()]
        self._rows.clear()
