"""What the model's answer teaches: which near answers would have done, and where it belongs.

Runs after the request is over. The answer is compared with that of the nearest question, which
labels the decision that was taken (cache/agree.py), and where they differ with those of the next
few, so that a new wording finds its group. An answer that agrees renews its group's; one that
differs for the very same words shows that the old one is out of date; and one that differs where
somebody asked again, after a hit, shows that the hit was wrong (cache/hindsight.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from cache.agree import Judge, Label, agree, text_of
from cache.embed import Vector
from cache.entry import Coming, Seen
from cache.replay import Recording
from cache.space import SUPERSEDED, Space
from cache.verify import PAIR_FROM, Sighting, Verdict
from cache.verify_facts import Facts


@dataclass(frozen=True, slots=True)
class Doubt:
    """A hit after which its user asked again."""

    sighting: Sighting
    verdict: Verdict


@dataclass(slots=True)
class Asked:
    """One request that may be cached, on its way through: `doubt` and `verdict` come later. `owner`
    is whoever asks."""

    space: Space
    question: str
    facts: Facts
    vector: Vector
    seen: Seen | None
    owner: str
    doubt: Doubt | None = None
    verdict: Verdict | None = None
    told: bool = False
    """Whether its neighbour was labelled."""

    def close(self) -> None:
        """Nothing more will be learnt of it. An audit that told nothing counts all the same."""
        if self.seen is None or self.verdict is None or self.told:
            return
        self.told = True
        if self.verdict.action == "explore":
            self.space.lose(self.seen.sighting, self.verdict)


@dataclass(frozen=True, slots=True)
class Learnt:
    """Where an answer belongs, and the key of its question, if that was kept."""

    group: int
    key: int | None = None


EmbedFor: TypeAlias = Callable[[str, str], Awaitable[Vector]]
"""(text, for whom it may be remembered) → its vector: cache/embed.py."""


class Teacher:
    def __init__(self, embed: EmbedFor, judge: Judge | None = None) -> None:
        self._embed = embed
        self._judge = judge

    async def learn(self, asked: Asked, recording: Recording, coming: Coming) -> Learnt | None:
        """Label the neighbours by the model's answer and keep it; None where it was unwanted
        by the time that it was compared."""
        space, seen, verdict = asked.space, asked.seen, asked.verdict
        owner, answer = asked.owner, coming.labels.answer
        home: int | None = None
        if seen is not None and verdict is not None:
            label = await self._compare(asked, recording, seen.entry.group)
            if label is not None:
                self._book(asked, seen.sighting, verdict, label)
                home = await self._home(asked, recording, seen, right=label.right)
        if coming.unwanted:
            return None
        if home is not None:
            space.renew(home, recording, owner=owner, answer=answer)
            if not space.policy.keeps_twins:
                return Learnt(home)
        key = space.add(
            asked.question, asked.vector, recording, owner=owner, answer=answer, group=home
        )
        entry = space.entry(key)
        return None if entry is None else Learnt(entry.group, key)

    def _book(self, asked: Asked, sighting: Sighting, verdict: Verdict, label: Label) -> None:
        asked.told = True
        asked.space.book(sighting, verdict, right=label.right, source=label.source)
        if asked.doubt is not None and not label.right:
            doubt = asked.doubt
            asked.space.book(doubt.sighting, doubt.verdict, right=False, source="rephrase")

    async def _home(
        self, asked: Asked, recording: Recording, seen: Seen, *, right: bool
    ) -> int | None:
        """The group that the fresh answer belongs to, among those near; None: a new one."""
        if right:
            return seen.entry.group
        if seen.sighting.similarity >= SUPERSEDED and not any(seen.sighting.signs[PAIR_FROM:]):
            asked.space.drop(seen.entry.key)
        for number in seen.groups[1:4]:
            label = await self._compare(asked, recording, number, judged=False)
            if label is not None and label.right:
                return number
        return None

    async def _compare(
        self, asked: Asked, recording: Recording, number: int, *, judged: bool = True
    ) -> Label | None:
        """Whether the answer of group `number` would have done; None if it is gone."""
        group = asked.space.group(number)
        if group is None:
            return None
        return await agree(
            asked.question,
            text_of(recording),
            text_of(group.recording),
            embed=lambda text: self._embed(text, asked.space.origin.scope),
            judge=self._judge if judged else None,
        )
