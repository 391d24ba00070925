"""What one tenant has had beyond its part is lent to it: when it is taken back, and from whom.

Problem. A flood fills every slot of the batch, most pages, and each step with its prompts. Whoever
asks now and then is next in line at once (fair.py), and still waits: for a slot until an answer of
the flood ends, 180 ms on average in a model of the small bundled one on a CPU, and for their step,
which takes 80 ms instead of 22.

Choice. While several tenants are about:

    slots, pages   a tenant under its part takes them back from one over its part: the youngest
                   sequence gives way. Never below the part, so that nobody takes them forth again.
    prompts        of a tenant that crowds (parts.py) get an EIGHTH of a step's tokens, so that the
                   step that somebody arrives in is short. They are not fewer, they are spread.
    one step       is computed without those who crowd, where somebody's answer begins with it; as
                   long as what was computed without them is no more than what was with them, and a
                   step's tokens besides. Prompts wait already where their tenant has more than its
                   part of what runs and was served more: with a limit of four requests at a time
                   nobody crowds, and still fills each step with up to four prompts.
    turns          who does not crowd may be ahead by a step's tokens in what it was served, so that
                   two questions in a row are not one too many.

All of that holds only against tenants that were served no less, but for the last line's tokens: who
takes more than its share with short answers and long prompts has no claim.

Rejected. Slots kept free (see parts.py). Leaving sequences of the flood out of every step, or the
flood's batch at its part: a batch of half the size is a third less work done.

Price. Where one tenant has all the load but others are about, its prompts come in more steps: 3 %
fewer tokens a second with 32 slots on a CPU, 12 % with 64. A step that is sat out costs its fixed
part once more.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator

from engine.fair import Fair
from engine.parts import Parts
from engine.sequence import Chunk, Sequence
from engine.step import Step

EIGHTH = 8


class Lent:
    """Decides for one scheduler. Changes nothing but its own patience."""

    def __init__(self, step_tokens: int, fair: Fair, parts: Parts) -> None:
        """`step_tokens`: of one step at most."""
        self._most = step_tokens
        self._fair = fair
        self._parts = parts
        self._least = max(1, step_tokens // EIGHTH)
        self._patience = step_tokens
        """Tokens that may be computed without those who crowd."""

    @property
    def prompt_tokens(self) -> int:
        """Of a step, for prompts of tenants that crowd."""
        return self._least

    def turn(self, tenant: str) -> float:
        """The smallest is next."""
        level = self._fair.level(tenant)
        return level if self._parts.crowds(tenant, 1) else level - self._most

    def slot(
        self, tenant: str, running: Iterable[Sequence], fresh: Container[Sequence]
    ) -> Sequence | None:
        """Who gives a slot back to the tenant. Those in `fresh` do not: they have just come."""
        if not self._parts.under(tenant):
            return None
        borrowers = self._borrowers(tenant, running, fresh)
        return self.youngest(s for s in borrowers if self._parts.over(s.tenant))

    def pages(
        self,
        tenant: str,
        need: int,
        whole: int,
        running: list[Sequence],
        fresh: Container[Sequence],
    ) -> Sequence | None:
        """Who gives pages back to the tenant, which needs so many more of `whole`."""
        held: dict[str, int] = {}
        for one in running:
            held[one.tenant] = held.get(one.tenant, 0) + len(one.pages)
        part = self._parts.part
        if held.get(tenant, 0) + need > part(tenant, whole):
            return None
        return self.youngest(
            s
            for s in self._borrowers(tenant, running, fresh)
            if held[s.tenant] - len(s.pages) >= part(s.tenant, whole)
        )

    def youngest(self, sequences: Iterable[Sequence]) -> Sequence | None:
        """Of the tenant that was served most, the youngest."""
        level = self._fair.level
        return max(sequences, key=lambda s: (level(s.tenant), s.arrival, s.id), default=None)

    def without_the_crowd(self, step: Step) -> list[Chunk]:
        """The step's chunks; if somebody's first token is drawn in it, those of tenants that crowd,
        and prompts of whoever exceeds its part, only as far as they are owed as well."""
        chunks = step.chunks
        owed = {t: before for t, before in step.firsts.items() if not self._parts.crowds(t)}
        few = [c for c in chunks if not self._may_wait(c, owed)]
        cost = max(self._least, sum(c.length for c in few))
        if len(few) < len(chunks) and cost <= self._patience:
            self._patience -= cost
            return few
        cost = max(self._least, sum(c.length for c in chunks))
        self._patience = min(self._most, self._patience + cost)
        return chunks

    def _may_wait(self, chunk: Chunk, owed: dict[str, float]) -> bool:
        """Whether it can sit a step out for the first tokens of others, whose levels are given."""
        tenant = chunk.sequence.tenant
        least = min((before for t, before in owed.items() if t != tenant), default=math.inf)
        level = self._fair.level(tenant)
        if self._parts.crowds(tenant):
            return level >= least - self._most
        return chunk.length > 1 and level >= least and self._parts.exceeds(tenant)

    def _borrowers(
        self, tenant: str, running: Iterable[Sequence], fresh: Container[Sequence]
    ) -> Iterator[Sequence]:
        """Sequences of others that were served no less."""
        least = self._fair.level(tenant) - self._most
        for sequence in running:
            owner = sequence.tenant
            if owner != tenant and self._fair.level(owner) >= least and sequence not in fresh:
                yield sequence
