"""Prompts that are being computed, found by the page that each computes next.

Problem. A waiting sequence must know whether a running prompt is computing what it would compute
itself. Asked pair by pair, 128 requests with one system prompt cost 25 ms a step: every prompt that
is admitted is compared with every candidate over all that they share.

Choice. What two prompts share goes beyond what the running one has computed only if its next page
is the other's, too. So running prompts are kept by that page, and a candidate is compared in full
with those few whose next page it has.
"""

from __future__ import annotations

from engine.sequence import Sequence
from engine.space import Space

Page = tuple[int, bytes]
"""Which page of a prompt, and its tokens."""


class Twins:
    """The prompts of one step's plan."""

    def __init__(self, space: Space, prompts: list[Sequence]) -> None:
        self._space = space
        self._size = space.page_size
        self._next: dict[str, dict[int, dict[bytes, list[Sequence]]]] = {}
        for prompt in prompts:
            self.add(prompt)

    def add(self, prompt: Sequence) -> None:
        """One more is being computed."""
        at = prompt.computed // self._size
        if (at + 1) * self._size <= prompt.known:
            pages = self._next.setdefault(prompt.namespace, {}).setdefault(at, {})
            pages.setdefault(self._page(prompt, at), []).append(prompt)

    def common(self, sequence: Sequence) -> int:
        """The most tokens that a running prompt will have computed of what `sequence` needs; 0
        where none computes anything of it."""
        most = 0
        for at, pages in self._next.get(sequence.namespace, {}).items():
            if (at + 1) * self._size < sequence.known:
                for other in pages.get(self._page(sequence, at), ()):
                    common = self._space.common(sequence, other)
                    most = max(most, common if common > other.computed else 0)
        return most

    def _page(self, sequence: Sequence, at: int) -> bytes:
        return sequence.tokens[at * self._size : (at + 1) * self._size].tobytes()
