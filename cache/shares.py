"""A bounded memory for several holders, none of whom can push out another's share.

When it is full, whoever holds most loses their oldest. So each of n holders can count on 1/n of the
room, whatever the others do, and one who is alone has all of it. A bound for each holder would
promise the same only if it were small enough for all holders that there may ever be.

Holders stand in lines by how much they hold, so that the one with most is found without a look at
all of them: a few dictionary operations for each item, of which there is one a request.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Shares(Generic[K, V]):
    """Values by key; a key has one holder."""

    def __init__(self, capacity: int) -> None:
        """`capacity` in items, of all holders together."""
        self._capacity = capacity
        self._holders: dict[K, str] = {}
        self._held: dict[str, OrderedDict[K, V]] = {}
        self._lines: dict[int, OrderedDict[str, None]] = {}
        """Number of items → who holds as many."""
        self._most = 0

    def __len__(self) -> int:
        return len(self._holders)

    def get(self, key: K) -> V | None:
        holder = self._holders.get(key)
        return None if holder is None else self._held[holder][key]

    def put(self, holder: str, key: K, value: V) -> None:
        """As the holder's newest. What is held under this key already is replaced."""
        self.pop(key)
        held = self._held.setdefault(holder, OrderedDict())
        held[key] = value
        self._holders[key] = holder
        self._move(holder, len(held) - 1, len(held))
        if len(self._holders) > self._capacity:
            largest = next(iter(self._lines[self._most]))
            self.pop(next(iter(self._held[largest])))

    def clear(self) -> None:
        for kept in (self._holders, self._held, self._lines):
            kept.clear()
        self._most = 0

    def pop(self, key: K) -> V | None:
        holder = self._holders.pop(key, None)
        if holder is None:
            return None
        held = self._held[holder]
        value = held.pop(key)
        self._move(holder, len(held) + 1, len(held))
        if not held:
            del self._held[holder]
        return value

    def _move(self, holder: str, before: int, after: int) -> None:
        """From one line to the next."""
        if before:
            del self._lines[before][holder]
            if not self._lines[before]:
                del self._lines[before]
        if after:
            self._lines.setdefault(after, OrderedDict())[holder] = None
        if after > self._most or self._most not in self._lines:
            self._most = after
