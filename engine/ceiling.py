"""How large a step may be after memory ran out in one.

Problem. What a step takes besides pages and weights is known about, not exactly: kernels compile,
libraries keep workspaces, other programs share the card. A step that does not fit today is no
reason to fail anybody: half of it may fit, and does the same work in twice the steps.

Choice. The next steps hold at most half the tokens and half the sequences of the one that failed,
again and again until one fits; fewer sequences than tokens, so that prompts go on and whoever comes
gets in. For GROWS_S nothing changes, then both grow by half; if that fails,
it is halved again. What does not fit as one token of one sequence does not fit.

Rejected. A trial whether there is room before each step: a call to the driver, and too late when
two programs ask at once. To go back to full steps at once: each trial costs a preemption.

Price. After a lack that has passed, full steps of 8192 tokens are back in two minutes at most.
"""

from __future__ import annotations

import math

GROWS_S = 5.0


class Ceiling:
    """What the next step may hold. Owned by one scheduler."""

    def __init__(self, tokens: int, rows: int) -> None:
        """`tokens`, `rows` (sequences): of a step where memory is no concern; tokens > rows."""
        self._most = (tokens, rows)
        self.tokens = tokens
        self.rows = rows
        self._grows_at = math.inf

    def lower(self, tokens: int, rows: int, now: float) -> bool:
        """A step of so many ran out of memory. False: none can be smaller than the ceiling was."""
        lowest = self.tokens == self.rows == 1
        self.tokens = max(1, tokens // 2)
        self.rows = max(1, min(rows // 2, self.tokens - 1))
        self._grows_at = now + GROWS_S
        return not lowest

    def look(self, now: float) -> None:
        """Grow, if memory was enough for long enough."""
        if now < self._grows_at:
            return
        most_tokens, most_rows = self._most
        self.tokens = min(most_tokens, self.tokens + self.tokens // 2 + 1)
        rows = min(most_rows, self.rows + self.rows // 2 + 1)
        self.rows = max(1, min(rows, self.tokens - 1))
        whole = (self.tokens, self.rows) == self._most
        self._grows_at = math.inf if whole else now + GROWS_S
