"""How much of a wait a server had, and how much this process was late itself.

Problem. Who waits for a reply waits for two: for the server, and for this event loop to come round,
several times, and read what has arrived. A garbage collection, or a thread that holds Python's
lock, can keep the loop away for longer than any server takes. That the reply was not read in time
is then no news of the server, and to stop asking it would help nobody.

Choice. While somebody waits, a timer beats some twenty times in the span that may be waited. What a
beat comes late by is this process's own time; the rest is what the server had.

Rejected: how late the deadline itself comes (a loop whose every turn takes 10 ms is late by half of
one, and a reply takes five turns to be read), and a watch on another thread (which wants Python's
lock as well). Not told apart: a machine so busy that the server does not run either.

Price: one timer, 2 µs, for each call that is answered at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_BEATS: Final = 20
_LEAST_S: Final = 0.001
"""Timers are no finer, and no more exact."""


class Lag:
    """Of one wait, from now on. Needs a running event loop."""

    def __init__(self, wait_s: float, clock: Callable[[], float]) -> None:
        """`wait_s` is the longest that is waited; `clock` gives monotonic seconds."""
        self._every_s = max(wait_s / _BEATS, _LEAST_S)
        self._clock = clock
        self._started = clock()
        self._late_s = 0.0
        self._fair_s: float | None = None
        self._arm()

    def stop(self) -> float:
        """How long the server had, in seconds; the same when it is called again."""
        if self._fair_s is None:
            self._timer.cancel()
            self._book()
            self._fair_s = max(0.0, self._clock() - self._started - self._late_s)
        return self._fair_s

    def _arm(self) -> None:
        self._due = self._clock() + self._every_s
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._beat)

    def _beat(self) -> None:
        self._book()
        self._arm()

    def _book(self) -> None:
        late_s = self._clock() - self._due
        if late_s > _LEAST_S:
            self._late_s += late_s
