"""How much of the semantic cache those who share a room may fill, over all its namespaces.

Anybody can make a new namespace: another system prompt, another max_tokens. So a bound on each
namespace bounds nobody. A room's questions (cache/who.py) are counted together, by who asked them;
who has too many loses the oldest of their own, and where the room is full, so does who has most
(cache/holdings.py). Nobody loses anything to another room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cache.holdings import Holdings


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one room, in questions (an owner is an end user, or a tenant); and of one scope, in
    namespaces."""

    max_entries: int = 50_000
    max_per_owner: int = 50_000
    max_namespaces: int = 500


Drop: TypeAlias = Callable[[int], None]
_Place: TypeAlias = tuple[int, int]
"""(namespace's number, key)."""


class Quota:
    """The questions of one room. Shared by its namespaces."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._held = Holdings[_Place]()
        self._drops: dict[_Place, Drop] = {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, space: int, key: int, owner: str, drop: Drop) -> None:
        """Book a question, and drop the oldest ones that are now too many."""
        self._held.add((space, key), owner)
        self._drops[space, key] = drop
        if self._held.held_by(owner) > self.bounds.max_per_owner:
            self._drop(self._held.oldest(owner))
        if len(self._held) > self.bounds.max_entries:
            self._drop(self._held.loser())

    def remove(self, space: int, key: int) -> None:
        self._held.remove((space, key))
        del self._drops[space, key]

    def _drop(self, place: _Place) -> None:
        self._drops[place](place[1])
