"""How much of the semantic cache one scope, and one user in it, may fill, over all its namespaces.

Anybody can make a new namespace: another system prompt, another max_tokens. So a bound on each
namespace bounds nobody. A scope's questions stand in one line and so do those of each owner, oldest
first; who has too many loses the oldest of their own. Nobody loses anything to another scope, and
within a scope an owner who floods it reaches `max_per_owner` and then pushes out themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one scope. The first two in questions; an owner is an end user, or a tenant."""

    max_entries: int = 50_000
    max_per_owner: int = 50_000
    max_namespaces: int = 500


Drop: TypeAlias = Callable[[int], None]
_Line: TypeAlias = OrderedDict[tuple[int, int], Drop]
"""(namespace's number, key) -> how to drop it."""


class Quota:
    """The lines of one scope. Shared by its namespaces."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._all: _Line = OrderedDict()
        self._owners: dict[str, _Line] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, space: int, key: int, owner: str, drop: Drop) -> None:
        """Book a question, and drop the oldest ones that are now too many."""
        self._all[space, key] = drop
        owned = self._owners.setdefault(owner, OrderedDict())
        owned[space, key] = drop
        if len(owned) > self.bounds.max_per_owner:
            _drop_oldest(owned)
        if len(self._all) > self.bounds.max_entries:
            _drop_oldest(self._all)

    def remove(self, space: int, key: int, owner: str) -> None:
        del self._all[space, key]
        owned = self._owners[owner]
        del owned[space, key]
        if not owned:
            del self._owners[owner]


def _drop_oldest(line: _Line) -> None:
    (_, key), drop = next(iter(line.items()))
    drop(key)
