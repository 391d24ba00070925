"""The sliding window of one gateway: how much was used in the last minute.

Choice: two counters. The last minute is estimated as the current minute's count plus the share of
the previous minute that is still inside the window; it admits no burst of twice the limit at a
minute's edge, as fixed windows do, and holds two integers where a log of arrivals holds one entry
per request. It is off by a few percent if the previous minute was uneven.

Rejected: the `limits` library in process. Its moving window costs 5.7 µs a hit and 3.6 µs for the
numbers in the headers, against 0.5 µs for both here, and starts a thread.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 60.0


@dataclass(slots=True)
class Window:
    """One tenant's count of requests or tokens. `opened` is when the current minute began."""

    limit: int
    opened: float
    current: int = 0
    previous: int = 0

    def roll(self, now: float) -> float:
        """Bring the window up to `now`; the estimate of what was used in the last minute."""
        elapsed = now - self.opened
        if elapsed >= WINDOW_S:
            self.previous = self.current if elapsed < 2 * WINDOW_S else 0
            self.current = 0
            self.opened = now - elapsed % WINDOW_S
            elapsed = now - self.opened
        return self.current + self.previous * (1.0 - elapsed / WINDOW_S)

    def fits(self, now: float, cost: int) -> bool:
        return self.roll(now) + cost <= self.limit

    def take(self, now: float, cost: int) -> float:
        """Count it; what `correct` has to be told later."""
        self.current += cost
        return now

    def wait_s(self, now: float, cost: int = 1) -> float:
        """Seconds until `cost` ≤ `limit` fits, if nothing comes meanwhile."""
        elapsed = now - self.opened
        if self.current + cost > self.limit:
            # The current minute fills the window alone: it first has to become the previous one.
            fades = WINDOW_S * (1.0 - (self.limit - cost) / self.current)
            return WINDOW_S - elapsed + fades
        surplus = self.current + cost - self.limit + self.previous * (1.0 - elapsed / WINDOW_S)
        return max(0.0, surplus * WINDOW_S / self.previous) if self.previous else 0.0

    def correct(self, at: float, more: int) -> None:
        """`more` (or, below 0, less) was used of what was counted at `at`."""
        if at >= self.opened:
            self.current = max(0, self.current + more)
        elif at >= self.opened - WINDOW_S:
            self.previous = max(0, self.previous + more)
