"""What the model's answer teaches: which near answers would have done, and where it belongs.

Runs after the request is over. The answer is compared with that of the nearest question, which
labels the decision that was taken (cache/agree.py), and where they differ with those of the next
few, so that a new wording finds its group. An answer that agrees renews its group's; one that
differs for the very same words shows that the old one is out of date.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cache.agree import Judge, agree, text_of
from cache.embed import Vector
from cache.replay import Recording
from cache.space import SUPERSEDED, Seen, Space
from cache.verify import PAIR_FROM, Verdict
from cache.verify_facts import Facts


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that may be cached, on its way through."""

    namespace: bytes
    space: Space
    question: str
    facts: Facts
    vector: Vector
    seen: Seen | None
    verdict: Verdict | None


EmbedFor = Callable[[str, str], Awaitable[Vector]]
"""(text, for whom it may be remembered) → its vector: cache/embed.py."""


class Teacher:
    def __init__(self, embed: EmbedFor, judge: Judge | None = None) -> None:
        self._embed = embed
        self._judge = judge

    async def learn(self, asked: Asked, recording: Recording, owner: str) -> int | None:
        """Label the neighbours by the model's answer and keep it; the new question's key, if it
        was kept."""
        space, seen, verdict = asked.space, asked.seen, asked.verdict
        home: int | None = None
        if seen is not None and verdict is not None:
            right = await self._compare(asked, recording, seen.entry.group)
            if right is not None:
                space.policy.learn(seen.sighting, verdict, right=right)
                space.check(seen.entry.group, right=right)
                home = await self._home(asked, recording, seen, right=right)
        if home is not None:
            space.renew(home, recording)
            if not space.policy.keeps_twins:
                return None
        return space.add(
            asked.question, asked.facts, asked.vector, recording, owner=owner, group=home
        )

    async def _home(
        self, asked: Asked, recording: Recording, seen: Seen, *, right: bool
    ) -> int | None:
        """The group that the fresh answer belongs to, among those near; None: a new one."""
        if right:
            return seen.entry.group
        if seen.sighting.similarity >= SUPERSEDED and not any(seen.sighting.signs[PAIR_FROM:]):
            asked.space.drop(seen.entry.key)
        for number in seen.groups[1:4]:
            if await self._compare(asked, recording, number, book=False):
                return number
        return None

    async def _compare(
        self, asked: Asked, recording: Recording, number: int, *, book: bool = True
    ) -> bool | None:
        """Whether the answer of group `number` would have done; None if it is gone."""
        group = asked.space.group(number)
        if group is None:
            return None
        label = await agree(
            asked.question,
            text_of(recording),
            text_of(group.recording),
            embed=lambda text: self._embed(text, asked.namespace.hex()),
            judge=self._judge if book else None,
        )
        if book:
            asked.space.sources[label.source] += 1
        return label.right
