"""How much of what runs is each tenant's part, and who has more.

Problem. Who is served next is a matter of counters (fair.py). But a batch that one tenant has
filled stays full until its answers end, and whoever joins it is computed in steps as long as all of
theirs. A tenant that asks now and then waits for both, however little it was given.

Choice. The running sequences, and their pages, are divided by share among the tenants that are
*about*: those that wait, run, or did within the last LINGER_S. A tenant alone holds everything. One
that holds more than its part is `over`, and what it holds beyond is only lent: the scheduler may
take it back for a tenant that has less than its part, but never below the part itself.

Rejected. Slots that are kept free for those who may come: idle most of the time, and too few when
they do. Parts in tokens: how long an answer gets is not known when it begins.

Price. One entry for each tenant that is about, and a look through them once a second.
Source: lending and taking back among the queues of Hadoop's fair scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass

LINGER_S = 10.0
"""So long after its last request a tenant still has a part."""
LOOK_S = 1.0


@dataclass(slots=True)
class _About:
    share: float
    seen: float
    present: int = 0
    """Sequences that wait or run."""
    running: int = 0


class Parts:
    """Who is about in one lane, and how many sequences each runs. Owned by its scheduler."""

    def __init__(self, slots: int) -> None:
        """`slots`: sequences that may run at one time."""
        self.slots = slots
        """As many as a step has room for now: fewer for a while after memory ran out."""
        self._many = slots // 8
        self._running = 0
        self._about: dict[str, _About] = {}
        self._shares = 0.0
        self._look_at = 0.0

    @property
    def divided(self) -> bool:
        """Whether more than one tenant is about."""
        return len(self._about) > 1

    def come(self, tenant: str, share: float, count: int, now: float) -> None:
        """So many more of its sequences are there; `share` > 0 holds from now on."""
        about = self._about.setdefault(tenant, _About(share, now))
        about.share, about.seen = share, now
        about.present += count
        self._add_up()

    def go(self, tenant: str, now: float) -> None:
        """One of its sequences has ended."""
        about = self._about[tenant]
        about.present -= 1
        about.seen = now

    def begin(self, tenant: str) -> None:
        """One of its sequences runs."""
        self._about[tenant].running += 1
        self._running += 1

    def end(self, tenant: str) -> None:
        """One of its sequences does not run any more."""
        self._about[tenant].running -= 1
        self._running -= 1

    def look(self, now: float) -> None:
        """Forget who left long ago."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        gone = [t for t, a in self._about.items() if not a.present and now - a.seen > LINGER_S]
        for tenant in gone:
            del self._about[tenant]
        if gone:
            self._add_up()

    def part(self, tenant: str, whole: int) -> int:
        """Its part of `whole`, at least 1."""
        return max(1, int(whole * self._about[tenant].share / self._shares))

    def under(self, tenant: str) -> bool:
        """Whether it runs less than its part."""
        return self._about[tenant].running < self.part(tenant, self.slots)

    def over(self, tenant: str) -> bool:
        """Whether it runs beyond its part."""
        return self._about[tenant].running > self.part(tenant, self.slots)

    def crowds(self, tenant: str, more: int = 0) -> bool:
        """Whether it has, or would have with `more`, a good many of the slots, and more than its
        part of those that are taken, while others are about."""
        if not self.divided:
            return False
        own = self._about[tenant].running + more
        return own > self._many and own > self.part(tenant, self._running + more)

    def exceeds(self, tenant: str) -> bool:
        """Whether it has several running, and more than its part of what runs."""
        own = self._about[tenant].running
        return own > 1 and own > self.part(tenant, self._running)

    def _add_up(self) -> None:
        self._shares = sum(about.share for about in self._about.values())
