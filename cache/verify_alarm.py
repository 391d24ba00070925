"""Has the traffic changed? Listens to labels and rings when they stop agreeing with the odds.

A CUSUM (Page, "Continuous inspection schemes", 1954) for each factor by which the odds may be off:
a sum of log likelihood ratios that starts again at zero whenever it falls below. It also knows when
the rise began, which is from when on what was learnt is still of use.
"""

from __future__ import annotations

import math


class Alarm:
    """Rings when labels stop agreeing with the odds: one CUSUM per factor by which they are off."""

    FACTORS = (2.0, 6.0, 20.0)
    HEIGHT = 6.0
    """On labels that agree it rings less than once in exp(6) = 400 of them, mostly much less."""

    def __init__(self) -> None:
        self._sums = [0.0] * len(self.FACTORS)
        self._starts = [0] * len(self.FACTORS)

    def hear(self, p: float, *, wrong: bool, now: int) -> int | None:
        """A label; the request number at which things seem to have changed if it rings."""
        for index, factor in enumerate(self.FACTORS):
            if self._sums[index] == 0.0:
                self._starts[index] = now
            step = (math.log(factor) if wrong else 0.0) - math.log1p(p * (factor - 1))
            self._sums[index] = max(0.0, self._sums[index] + step)
            if self._sums[index] >= self.HEIGHT:
                self._sums = [0.0] * len(self.FACTORS)
                return self._starts[index]
        return None
