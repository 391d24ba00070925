"""Whether a namespace is worth an embedding: where nothing was allowed for long, few are looked at.

A namespace of questions that never return would cost 3 ms a request for nothing. It is asked again
now and then, which is enough to notice a change, and at once when another promise is made.
"""

from __future__ import annotations

from typing import Final

CLOSED_FOR: Final = 3000
"""Requests in a row without a hit allowed, from which it rests."""

AWAKE: Final = 10
"""One request of so many is looked at all the same."""


class Rest:
    """Of one namespace. Belongs to one event loop."""

    def __init__(self) -> None:
        self._closed = self._passed = 0

    def note(self, *, allowed: bool) -> None:
        """Whether the policy allowed a hit for the request that was just looked up."""
        self._closed = 0 if allowed else self._closed + 1

    def passes(self) -> bool:
        """Whether to leave the next request alone."""
        if self._closed < CLOSED_FOR:
            return False
        self._passed += 1
        return self._passed % AWAKE != 0

    def wake(self) -> None:
        self._closed = 0
