"""How many bytes of memory all namespaces of the semantic cache hold, and who gives some up.

What is counted: each answer with the questions that share it (texts, tags, vectors), and what each
namespace has learnt. Where that is too much, whoever holds most (cache/holdings.py) loses what they
did not use for longest: an answer with its questions, which the archive forgets as well, or a whole
namespace. So a restart does not bring back what there was no room for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from cache.holdings import Holdings

MEMORY_BYTES: Final = 512 << 20

Drop: TypeAlias = Callable[[int], object]
_Place: TypeAlias = tuple[int, int]
"""(namespace's number, group's number)."""

ITSELF: Final = 0
"""Stands for a namespace itself, where the number of a group would stand."""


class Memory:
    """Shared by all namespaces of a process."""

    def __init__(self, most: int = MEMORY_BYTES) -> None:
        self._most = most
        self._held = Holdings[_Place]()
        self._drops: dict[_Place, Drop] = {}

    @property
    def held_bytes(self) -> int:
        return self._held.total

    def weigh(self, space: int, number: int, owner: str, size: int, drop: Drop) -> None:
        """What it is now, whether or not it was known; then drop what is too much, this included
        where it is its turn."""
        place = (space, number)
        if place in self._held:
            self._held.weigh(place, size)
        else:
            self._held.add(place, owner, size)
            self._drops[place] = drop
        while self._held.total > self._most:
            loser = self._held.loser()
            self._drops[loser](loser[1])

    def use(self, space: int, number: int) -> None:
        if (space, number) in self._held:
            self._held.use((space, number))

    def remove(self, space: int, number: int) -> None:
        """Nothing happens where it was never weighed."""
        if (space, number) in self._held:
            self._held.remove((space, number))
            del self._drops[space, number]
