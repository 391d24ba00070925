"""Who waits, by tenant, and who of a tenant's is next.

Problem. A tenant's requests should be served in their order, but one whose prompt's beginning the
tree still holds costs less now than later, and one whose beginning is being computed right now
costs less in a moment.

Choice. The longest cached prefix among a tenant's first few goes first, but nobody is overtaken
more than `max_overtakes` times. A sequence that would compute again what a running prompt is
computing waits for it (a twin: the siblings of n > 1, a burst with one system prompt) and then
finds it in the tree. What was preempted waits at the head.

A full queue refuses whoever comes, except that a tenant may always queue its part of it: a flood
fills its own part only.

Source: SGLang's longest-prefix-first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from engine.sequence import Sequence
from engine.space import Space
from engine.twins import Twins


class Waiting:
    """The queues of one model, by tenant. Owned by its scheduler."""

    def __init__(self, space: Space, *, most: int, window: int, max_overtakes: int) -> None:
        """`most`: sequences that wait. `window`: of a tenant's first ones, how many compete."""
        self._space = space
        self._most = most
        self._window = window
        self._max_overtakes = max_overtakes
        self._queues: dict[str, deque[Sequence]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    @property
    def tenants(self) -> list[str]:
        """Those that wait."""
        return list(self._queues)

    def of(self, tenant: str) -> list[Sequence]:
        """A copy, in order."""
        return list(self._queues.get(tenant, ()))

    def has_room(self, tenant: str, count: int) -> bool:
        """Whether so many more of a tenant's may wait."""
        own = len(self._queues.get(tenant, ())) + count
        part = self._most // len({*self._queues, tenant})
        return len(self) + count <= self._most or own <= part

    def add(self, sequences: Iterable[Sequence], tenant: str) -> None:
        """Behind the tenant's others."""
        self._queues.setdefault(tenant, deque()).extend(sequences)

    def put_back(self, sequence: Sequence) -> None:
        """At the head of its queue."""
        self._queues.setdefault(sequence.tenant, deque()).appendleft(sequence)

    def remove(self, sequence: Sequence) -> bool:
        """It waits no more. True: nor does its tenant."""
        queue = self._queues[sequence.tenant]
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.tenant]
        return not queue

    def overtake(self, sequence: Sequence) -> None:
        """It goes first: count it for those before it."""
        for earlier in self._queues[sequence.tenant]:
            if earlier is sequence:
                break
            earlier.overtaken += 1

    def next_of(self, tenant: str, twins: Twins) -> Sequence | None:
        """The tenant's next, if any need not wait for a twin."""
        window = islice(self._queues[tenant], self._window)
        ready = [s for s in window if not s.ahead and not self._has_twin(s, twins)]
        if not ready:
            return None
        if ready[0].preempted or ready[0].overtaken >= self._max_overtakes:
            return ready[0]
        return ready[0] if len(ready) == 1 else max(ready, key=self._space.held)

    def _has_twin(self, sequence: Sequence, twins: Twins) -> bool:
        """Whether a running prompt will compute at least half of what this one would compute."""
        common = twins.common(sequence)
        if not common:
            return False
        held = self._space.held(sequence)
        return 2 * (common - held) >= sequence.known - held
