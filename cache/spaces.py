"""All namespaces of this process: opened when they are asked, refilled from the archive, kept in
step with other gateways, erased from.

    restart ──── load ───┐                         ┌──► archive
    other gateways ─ news ┴─► spaces ─► journal ───┘

Who makes namespaces without end pushes out their own (cache/holdings.py): a namespace counts to the
end user who made it, and to their tenant in common once another of its users asks there. What is
shared is served only while it is known what others have erased.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from weakref import WeakValueDictionary

from cache.archive import Dropped, Erasure, Kept, Lesson, Lost, News, Summary
from cache.entry import Coming, Labels, Origin, SpaceState
from cache.holdings import Holdings
from cache.keeper import Keeper
from cache.memory import ITSELF, Memory
from cache.namespace import Terms
from cache.quota import Bounds, Quota
from cache.space import Space
from cache.store.base import StoreFault
from cache.verify import Policy
from cache.who import owner_of, room_of, tenant_of

MAX_SIBLINGS: Final = 16
_LOADED_AT_ONCE: Final = 8
"""Each takes 0.2 ms or so, and requests go on meanwhile."""
_MEANWHILE: Final = 10_000
_READING: Final = "what was kept is being read"

_Change: TypeAlias = Kept | Dropped | Lesson | Erasure

PolicyOf: TypeAlias = Callable[[Terms, Sequence[Policy]], Policy]
"""(terms, policies of the scope's other namespaces) -> the policy of a new namespace."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """The namespaces of one scope, the longest unused first, and whom they count to."""

    spaces: OrderedDict[bytes, Space] = field(default_factory=OrderedDict)
    held: Holdings[bytes] = field(default_factory=Holdings)


class Spaces:
    def __init__(
        self,
        *,
        policy_of: PolicyOf,
        dimensions: Callable[[], int],
        bounds: Bounds,
        max_spaces: int,
        keeper: Keeper | None,
        clock: Callable[[], float],
        memory: Memory,
        on_erase: Callable[[Erasure], None] = lambda _erasure: None,
    ) -> None:
        """`max_spaces` bounds all scopes together, `bounds` each of them. `dimensions` is asked
        when there are vectors; `on_erase` is told of each erasure, another gateway's too."""
        self._policy_of = policy_of
        self._dimensions = dimensions
        self._bounds = bounds
        self._max_spaces = max_spaces
        self._keeper = keeper
        self._clock = clock
        self._on_erase = on_erase
        self._coming: set[Coming] = set()
        self._spaces: OrderedDict[bytes, Space] = OrderedDict()
        self._memory = memory
        self._held = Holdings[bytes]()
        self._scopes: dict[str, _Scope] = {}
        self._quotas: WeakValueDictionary[str, Quota] = WeakValueDictionary()
        """Of each room (cache/who.py), as long as it has a namespace."""
        self._terms_for: Callable[[str], Terms] = lambda _scope: Terms()
        self._not_yet = "" if keeper is None else _READING
        self._stale = False
        self._meanwhile: deque[_Change] = deque()

    @property
    def problem(self) -> str:
        """Why nothing here may be served or added to; empty where it may."""
        if self._not_yet:
            return self._not_yet
        if self._keeper is not None and not self._keeper.in_touch:
            return "the shared cache is out of touch"
        return ""

    def find(self, namespace: bytes) -> Space | None:
        return self._spaces.get(namespace)

    def open(self, origin: Origin, terms: Terms, owner: str) -> Space:
        """The space of a namespace in which `owner` asks, made now if need be, under the terms of
        now."""
        namespace = origin.namespace
        space = self._spaces.get(namespace)
        if space is None:
            space = self._make(origin, terms, owner)
        else:
            self._use(space, owner)
        space.follow(terms.max_error)
        self._spaces.move_to_end(namespace)
        self._scopes[origin.scope].spaces.move_to_end(namespace)
        self._memory.use(id(space), ITSELF)
        self._memory.weigh(
            id(space), ITSELF, owner, space.learnt_bytes, lambda _: self._forget(namespace)
        )
        return space

    def _use(self, space: Space, owner: str) -> None:
        """What several users of a tenant use is their tenant's: no longer the one's to lose."""
        namespace = space.origin.namespace
        maker, tenant = self._held.owner(namespace), tenant_of(owner)
        is_colleague = owner != maker and tenant == tenant_of(maker)
        common = is_colleague and maker != tenant
        for held in (self._held, self._scopes[space.origin.scope].held):
            if common:
                held.remove(namespace)
                held.add(namespace, tenant)
            else:
                held.use(namespace)

    def _make(self, origin: Origin, terms: Terms, owner: str) -> Space:
        room, scope = room_of(origin.scope), self._scopes.setdefault(origin.scope, _Scope())
        quota = self._quotas.get(room)
        if quota is None:
            quota = self._quotas[room] = Quota(self._bounds)
        recent = itertools.islice(reversed(scope.spaces.values()), MAX_SIBLINGS)
        space = Space(
            origin,
            self._policy_of(terms, [sibling.policy for sibling in recent]),
            self._dimensions(),
            quota,
            self._memory,
            self._keeper.journal(origin, self._clock) if self._keeper else None,
        )
        self._spaces[origin.namespace] = scope.spaces[origin.namespace] = space
        for held in (self._held, scope.held):
            held.add(origin.namespace, owner)
        if len(scope.held) > self._bounds.max_namespaces:
            self._forget(scope.held.loser())
        elif len(self._held) > self._max_spaces:
            self._forget(self._held.loser())
        return space

    def _forget(self, namespace: bytes) -> None:
        space = self._spaces.pop(namespace)
        space.clear()
        self._memory.remove(id(space), ITSELF)
        for coming in self._coming:
            coming.unwanted |= coming.labels.namespace == namespace
        self._held.remove(namespace)
        scope = self._scopes[space.origin.scope]
        scope.held.remove(namespace)
        del scope.spaces[namespace]
        if not scope.spaces:
            del self._scopes[space.origin.scope]

    def expect(self, labels: Labels) -> Coming:
        """An answer that is to be kept when it has been compared (`arrived`). What makes it
        unwanted before that says so to it."""
        coming = Coming(labels)
        self._coming.add(coming)
        return coming

    def arrived(self, coming: Coming) -> None:
        self._coming.discard(coming)

    # ------------------------------------------------------------------ the archive

    async def restore(self, terms_for: Callable[[str], Terms]) -> int:
        """Open the archive and rebuild from it; `terms_for` gives a scope's terms. Returns the
        number of questions. Raises StoreFault; nothing is served from then on."""
        if self._keeper is None:
            return 0
        self._terms_for = terms_for
        try:
            await self._keeper.open(self.hear)
            await self._refill(self._keeper)
        except StoreFault:
            self._not_yet = "what was kept cannot be read"
            raise
        return sum(len(space) for space in self._spaces.values())

    async def _refill(self, keeper: Keeper) -> None:
        """Load everything. What happens meanwhile is done afterwards: what is loaded may be older.
        What was learnt stays."""
        self._not_yet = _READING
        self._stale = True
        while self._stale:
            self._stale = False
            self._meanwhile.clear()
            for space in self._spaces.values():
                space.clear()
            await self._load(keeper)
        self._not_yet = ""
        while self._meanwhile:
            self._apply(self._meanwhile.popleft())

    async def _load(self, keeper: Keeper) -> None:
        count = 0
        async for told in keeper.load():
            count += 1
            if count % _LOADED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if isinstance(told, Summary):
                self._take_over(told)
            else:
                self._apply(told)

    def _take_over(self, summary: Summary) -> None:
        space = self._space_of(summary)
        if space is not None and space.is_ignorant:
            space.take_over(summary)

    def _space_of(self, news: Kept | Summary | Lesson | Dropped) -> Space | None:
        known = self._spaces.get(news.namespace)
        if known is not None and isinstance(news, Kept):
            self._use(known, news.owner)
        if known is not None or isinstance(news, Lesson | Dropped):
            return known
        owner = news.owner if isinstance(news, Kept) else owner_of(news.scope)
        origin = Origin(news.namespace, news.scope, news.model)
        space = self.open(origin, self._terms_for(news.scope), owner)
        return space if self._spaces.get(news.namespace) is space else None  # no room for it

    async def hear(self, news: News) -> None:
        """What another gateway did."""
        if isinstance(news, Lost):
            if self._not_yet:
                self._stale = True
            elif self._keeper is not None:
                await self._refill(self._keeper)
        elif self._not_yet:
            self._later(news)
        else:
            self._apply(news)

    def _later(self, news: _Change) -> None:
        self._meanwhile.append(news)
        if len(self._meanwhile) > _MEANWHILE:
            self._meanwhile.clear()
            self._stale = True

    def _apply(self, news: _Change) -> None:
        if isinstance(news, Erasure):
            self._erase_here(news)
            return
        space = self._space_of(news)
        if space is None:
            return
        if isinstance(news, Kept):
            space.put_back(news)
        elif isinstance(news, Lesson):
            space.hear(news)
        else:
            for key in news.keys:
                space.drop(key, told=True)

    async def tell(self) -> None:
        """Tell the archive what has happened since the last time."""
        if self._keeper is not None:
            await self._keeper.tell()

    async def erase(self, erasure: Erasure) -> int:
        """Here and wherever the archive is shared; the number of questions. Raises StoreFault."""
        here = self._erase_here(erasure)
        there = await self._keeper.erase(erasure) if self._keeper is not None else 0
        # Once more: it may have been loaded again, or asked again, before the archive was done.
        erased = max(here + self._erase_here(erasure), there)
        await self.tell()
        return erased

    def _erase_here(self, erasure: Erasure) -> int:
        if self._not_yet:
            self._later(erasure)
        for coming in self._coming:
            coming.unwanted |= erasure.matches(coming.labels)
        self._on_erase(erasure)
        return sum(space.erase(erasure) for space in self._spaces.values())

    async def flush(self) -> None:
        if self._keeper is not None:
            await self._keeper.flush()

    async def close(self) -> None:
        if self._keeper is not None:
            await self._keeper.close()

    def state(self) -> list[SpaceState]:
        """Every namespace, the most recently used first."""
        return [space.state() for space in reversed(self._spaces.values())]
