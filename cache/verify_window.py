"""The last rows of numbers of one namespace: what was asked and what was labelled of late."""

from __future__ import annotations

from typing import Final

import numpy as np

from cache.verify import Floats

WINDOW: Final = 4000
"""Requests that are remembered. Longer lags behind a filling cache, shorter starves of labels."""


class Ring:
    """The last `WINDOW` rows of numbers, growing as they come."""

    def __init__(self, columns: int) -> None:
        self._rows = np.zeros((64, columns), np.float32)
        self.count = 0

    def add(self, *row: float, tail: Floats | None = None) -> None:
        """`row` are the first columns, `tail` the others."""
        if self.count == len(self._rows) < WINDOW:
            larger = np.zeros((min(WINDOW, 2 * self.count), self._rows.shape[1]), np.float32)
            larger[: self.count] = self._rows
            self._rows = larger
        at = self._rows[self.count % len(self._rows)]
        at[: len(row)] = row
        if tail is not None:
            at[len(row) :] = tail
        self.count += 1

    def rows(self) -> Floats:
        """(n, columns), in no promised order."""
        return self._rows[: min(self.count, len(self._rows))].astype(np.float64)

    @property
    def held_bytes(self) -> int:
        return self._rows.nbytes

    def snapshot(self) -> tuple[int, bytes]:
        return self.count, self._rows.tobytes()

    def restore(self, kept: tuple[int, bytes]) -> None:
        self.count = kept[0]
        columns = self._rows.shape[1]
        self._rows = np.frombuffer(kept[1], np.float32).reshape(-1, columns).copy()
