"""When to stop asking somebody who does not answer, and when to ask again.

    closed ── `limit` failures in a row ─► open ── cool-down over ─► half-open ── success ─► closed
                                            ▲                            │
                                            └────────── failure ─────────┘   (a longer cool-down)

While it is not closed nobody waits: what would be asked fails at once. The half-open trial is not
made with a request that somebody waits for, but by whoever calls `may_try` (a background task of
cache/store/redis_line.py), so that a dead server costs its first failures and nothing after them.

A plain object without I/O: the clock comes in, and each rule is a test without waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

State = Literal["closed", "open", "half-open"]

LIMIT: Final = 4
COOL_DOWN_S: Final = 0.25
MAX_COOL_DOWN_S: Final = 2.0
_CALM_S: Final = 10.0
"""One that opens again sooner than this after it closed goes on with the longer cool-down."""


class Breaker:
    """Belongs to one event loop. `clock` gives monotonic seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        limit: int = LIMIT,
        cool_down_s: float = COOL_DOWN_S,
        max_cool_down_s: float = MAX_COOL_DOWN_S,
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._least_s = cool_down_s
        self._most_s = max_cool_down_s
        self._cool_down_s = cool_down_s
        self._failures = 0
        self._opened_at = 0.0
        self._closed_at: float | None = None
        self.state: State = "closed"
        self.times_opened = 0

    @property
    def closed(self) -> bool:
        return self.state == "closed"

    @property
    def wait_s(self) -> float:
        """Until the next trial may be made; 0 when it may be now."""
        if self.state != "open":
            return 0.0
        return max(0.0, self._opened_at + self._cool_down_s - self._clock())

    def may_try(self) -> bool:
        """Whether to make a trial now; at most one runs at a time."""
        if self.state != "open" or self.wait_s > 0:
            return False
        self.state = "half-open"
        return True

    def success(self) -> None:
        """An answer in time. While open, only the trial's counts: others were asked before."""
        if self.state == "open":
            return
        if self.state == "half-open":
            self._closed_at = self._clock()
        self._failures = 0
        self.state = "closed"

    def failure(self) -> None:
        """No answer in time, or none at all. A refusal is an answer and is not booked here."""
        if self.state == "open":
            return
        if self.state == "half-open":
            self._cool_down_s = min(2 * self._cool_down_s, self._most_s)
            self._open()
            return
        self._failures += 1
        if self._failures >= self._limit:
            self._take_first_cool_down()
            self._open()

    def undecided(self) -> None:
        """The trial told nothing; the next one is as far away as this one was."""
        if self.state == "half-open":
            self.state = "open"
            self._opened_at = self._clock()

    def _take_first_cool_down(self) -> None:
        recent = self._closed_at is not None and self._clock() - self._closed_at < _CALM_S
        longer = min(2 * self._cool_down_s, self._most_s)
        self._cool_down_s = longer if recent else self._least_s

    def _open(self) -> None:
        self.state = "open"
        self.times_opened += 1
        self._opened_at = self._clock()
        self._failures = 0
