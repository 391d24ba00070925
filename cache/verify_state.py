"""What a promise rests on, in numbers: for people, for other gateways, for a later life."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Since:
    """Requests of a namespace: the p of each, how many were served, and the sum of the calibrated
    p of those."""

    asked: tuple[float, ...]
    served: int
    expected: float


@dataclass(frozen=True, slots=True)
class State:
    """What the promise rests on, for the dashboard and for people."""

    max_error: float
    requests: int
    served: int
    audited: int
    labels: int
    threshold: float
    """The largest p that is served; 0 while closed."""
    allowed_wrong: float
    """As many wrong hits as may have been served: `max_error` of each request, as it was then."""
    expected_wrong: float
    """Sum of the calibrated p of everything served."""
    proven_at_most: float
    proven_at_least: float
    alarms: int
    reason: str
    """Why nothing is served; empty while something is."""


class Allowance:
    """How many wrong hits a promise has allowed so far. When the promise changes, what was asked
    before stays under the old one: a looser one is no licence for the past, a tighter one no debt.
    """

    def __init__(self, max_error: float) -> None:
        self.max_error = max_error
        self._earlier, self._since = 0.0, 0

    def at(self, requests: int) -> float:
        return self._earlier + self.max_error * (requests - self._since)

    def change(self, max_error: float, requests: int) -> None:
        """From now on, after `requests` of them."""
        self._earlier, self._since = self.at(requests), requests
        self.max_error = max_error

    def snapshot(self) -> tuple[float, float, int]:
        return self.max_error, self._earlier, self._since

    def restore(self, kept: tuple[float, float, int]) -> None:
        self.max_error, self._earlier, self._since = kept
