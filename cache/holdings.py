"""Who holds how much, and who is to lose something when there is too much of it.

    tenant ──┬── end user ──┬── item, longest unused
             │              └── item
             └── end user

The tenant that holds most loses, in it the end user who holds most, and of theirs the item that
was unused for longest. So each of n tenants can count on 1/n of the room, whatever the others do,
and so can each end user on a part of the tenant's; who is alone has all of it. Items weigh: bytes,
or one each. Used for namespaces, questions and the bytes of answers (cache/spaces.py).

The largest stands at the head of a heap; what has changed since it was put there is passed over
when it is met (a few microseconds for each change). cache/shares.py does the same for values of one
weight and holders without users, with lines in place of heaps.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from typing import Final, Generic, TypeVar

from cache.who import tenant_of

K = TypeVar("K")

_STALE: Final = 64
"""Outdated places in a heap, beyond three for each holder, from which it is built anew."""


class Largest:
    """Holders by weight. Of several that weigh the same, the one unchanged for longest."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._ticks = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._places)

    def weight(self, holder: str) -> int:
        return -self._places.get(holder, (0, 0))[0]

    def change(self, holder: str, by: int, *, gone: bool = False) -> None:
        """`gone`: it holds nothing any longer."""
        if gone:
            self._places.pop(holder, None)
            return
        place = self._places[holder] = (-self.weight(holder) - by, next(self._ticks))
        heapq.heappush(self._heap, (*place, holder))
        if len(self._heap) > 3 * len(self._places) + _STALE:
            self._heap = [(*kept, name) for name, kept in self._places.items()]
            heapq.heapify(self._heap)

    def touch(self, holder: str) -> None:
        """As `change` by nothing; its place in the heap is put right when it is met."""
        self._places[holder] = (self._places[holder][0], next(self._ticks))

    def first(self) -> str:
        """The heaviest; there must be one."""
        while True:
            weight, tick, holder = self._heap[0]
            place = self._places.get(holder)
            if place == (weight, tick):
                return holder
            if place is not None and place[0] == weight:
                heapq.heapreplace(self._heap, (*place, holder))
            else:
                heapq.heappop(self._heap)


class Holdings(Generic[K]):
    """See the head of this file. `total` is the weight of everything."""

    def __init__(self) -> None:
        self.total = 0
        self._items: dict[K, tuple[str, int]] = {}
        self._lines: dict[str, OrderedDict[K, None]] = {}
        self._tenants = Largest()
        self._users: dict[str, Largest] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: K) -> bool:
        return item in self._items

    def add(self, item: K, owner: str, weight: int = 1) -> None:
        """As the owner's newest; it must be new."""
        self._items[item] = (owner, 0)
        self._lines.setdefault(owner, OrderedDict())[item] = None
        self.weigh(item, weight)

    def weigh(self, item: K, weight: int) -> None:
        owner, before = self._items[item]
        if weight != before:
            self._items[item] = (owner, weight)
            self._change(owner, weight - before)

    def owner(self, item: K) -> str:
        return self._items[item][0]

    def use(self, item: K) -> None:
        """Its turn to be lost comes last."""
        owner, _ = self._items[item]
        self._lines[owner].move_to_end(item)
        tenant = tenant_of(owner)
        self._users[tenant].touch(owner)
        self._tenants.touch(tenant)

    def remove(self, item: K) -> None:
        owner, weight = self._items.pop(item)
        line = self._lines[owner]
        del line[item]
        if not line:
            del self._lines[owner]
        self._change(owner, -weight)

    def held_by(self, owner: str) -> int:
        """Items, of an end user or of a tenant's requests that name none."""
        return len(self._lines.get(owner, ()))

    def oldest(self, owner: str) -> K:
        """The owner's longest unused item; there must be one."""
        return next(iter(self._lines[owner]))

    def loser(self) -> K:
        """What is to go when there is too much; there must be something."""
        return self.oldest(self._users[self._tenants.first()].first())

    def _change(self, owner: str, by: int) -> None:
        self.total += by
        tenant = tenant_of(owner)
        users = self._users.setdefault(tenant, Largest())
        users.change(owner, by, gone=owner not in self._lines)
        if not users:
            del self._users[tenant]
        self._tenants.change(tenant, by, gone=not users)
