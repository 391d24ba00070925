"""How often something happens, recent times counting more: for Retry-After and for metrics.

An exponentially decayed count: one number and one date, whatever the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

DECAY_S = 30.0


class Rate:
    """Events a second, over about the last half minute."""

    def __init__(self, clock: Callable[[], float], decay_s: float = DECAY_S) -> None:
        self._clock = clock
        self._decay_s = decay_s
        self._began = clock()
        self._counted = (0.0, self._began)
        """The count, and its date: replaced as one, so that any thread may read it."""
        self._any = False

    def count(self, events: float = 1.0) -> None:
        """So many just happened."""
        now = self._clock()
        self._counted = (self._decayed(now) + events, now)
        self._any = True

    def per_s(self) -> float:
        """Events a second; right from the start on, where the average covers less time. For any
        thread: it falls while nothing happens, and whoever counts may be asleep then."""
        now = self._clock()
        weight = self._decayed(now)
        age = max(1.0, now - self._began)
        return weight / (self._decay_s * (1.0 - math.exp(-age / self._decay_s)))

    def seconds_for(self, events: float) -> float:
        """How long so many will take, between 1 and 60 s; 5 when nothing has been counted yet."""
        if not self._any:
            return 5.0
        return min(60.0, max(1.0, events / max(self.per_s(), 1e-9)))

    def _decayed(self, now: float) -> float:
        weight, at = self._counted
        return weight * math.exp((at - now) / self._decay_s)
