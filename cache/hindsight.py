"""What is learnt of an answer after it was given: complaints, corrections, questions asked again.

*Feedback.* Somebody says by its id that an answer was wrong, or what would have been right, which
is compared with what was given. Complaints count as labels, praise does not: people complain of
what is wrong and are silent otherwise, so that counting both as a sample would be a bias, and this
way the bias is on the safe side. A kept answer of which there is more to complain than to confirm
is dropped, once two of those who share it have complained: of the end users, or of the tenants in a
group. Each is heard once of one answer, whatever ids they got it under. What a caller holds for
right is compared and never served: else a user could write the answers of others.

*Asking again.* A user who gets a hit and within a minute asks the same in other words was not
helped. That alone proves nothing (people also ask two things that are alike), so it is no label
yet: the second question goes to the model, whatever the policy allows, and if the model's answer
differs from the cached one, the hit before is booked as wrong, as a complaint would be. Only where
the end user is known: of two questions by one tenant nobody can tell who asked them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from cache.agree import agree, text_of
from cache.shares import Shares
from cache.space import Space
from cache.teach import Asked, Doubt, EmbedFor
from cache.verify import Sighting, Verdict
from cache.verify_facts import compare, vetoed

REMEMBERED: Final = 10_000
"""Answers that feedback can still reach, and hits after which somebody may ask again; of all
tenants together, each of which has its share (cache/shares.py)."""

AGAIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Given:
    """An answer that `tenant` got: a hit, or one that the model made and that was kept (then there
    is no decision to be judged)."""

    tenant: str
    owner: str
    """The end user, where one was named."""
    space: Space
    group: int
    decision: tuple[Sighting, Verdict] | None
    heard: bool = False
    """Somebody has spoken of it."""


Hearing: TypeAlias = Literal["taught", "unchanged", "unknown"]
"""What feedback came to. `unchanged`: the answer was spoken of before, also under another id by the
same user, or is no longer kept."""


class Hindsight:
    def __init__(self, embed: EmbedFor) -> None:
        self._embed = embed
        self._given = Shares[str, Given](REMEMBERED)
        self._hits = Shares[tuple[bytes, str], tuple[float, Asked]](REMEMBERED)
        """The last hit of each user in each namespace, with the time."""

    def remember(self, answer: str, given: Given) -> None:
        self._given.put(given.tenant, answer, given)

    def find(self, answer: str) -> Given | None:
        return self._given.get(answer)

    def forget(self) -> None:
        """What people have asked. Of answers given there is no text here."""
        self._hits.clear()

    async def feedback(
        self, answer: str, score: float, *, tenant: str, scope: str, correct: str | None
    ) -> Hearing:
        """What someone says of an answer given to `tenant` in `scope`. A score below .5, or a
        `correct` answer that says something else, is a complaint. Each id is heard of once."""
        given = self._given.get(answer)
        if given is None or (given.tenant, given.space.origin.scope) != (tenant, scope):
            return "unknown"
        group = given.space.group(given.group)
        if given.heard or group is None:
            return "unchanged"
        self.remember(answer, replace(given, heard=True))
        right = score >= 0.5
        if correct is not None:
            right = await self._says_the_same(correct, text_of(group.recording), scope)
        if not group.says(given.owner, right=right):
            return "unchanged"
        if right:
            given.space.praise(given.group)
        else:
            self._complain(given)
        return "taught"

    async def _says_the_same(self, correct: str, was: str, scope: str) -> bool:
        """As far as can be told without a judge, who alone would have to know the question."""
        label = await agree("", correct, was, embed=lambda text: self._embed(text, scope))
        return label.right

    def _complain(self, given: Given) -> None:
        space, number = given.space, given.group
        patience = 0
        if given.decision is None:
            space.blame(number)
        else:
            sighting, verdict = given.decision
            space.book(sighting, replace(verdict, chance=1.0), right=False, source="feedback")
            patience = 1
        group = space.group(number)
        if group is None or not group.is_refused:
            return
        if group.record.wrong > group.record.right + (patience if len(group.users) > 1 else 0):
            space.drop_group(number)

    # ------------------------------------------------------------------ asking again

    def served(self, asked: Asked, tenant: str, now: float) -> None:
        """A hit was given to a user of `tenant` who is known."""
        self._hits.put(tenant, (asked.space.origin.namespace, asked.owner), (now, asked))

    def doubt(self, asked: Asked, now: float) -> Doubt | None:
        """The hit after which the question asks again, in other words, if it does."""
        at = (asked.space.origin.namespace, asked.owner)
        served_at, hit = self._hits.get(at) or (0.0, asked)
        if hit.question == asked.question:
            return None
        self._hits.pop(at)
        if now - served_at > AGAIN_S or not _same_answer(hit, asked):
            return None
        assert hit.seen is not None
        assert hit.verdict is not None
        return Doubt(hit.seen.sighting, replace(hit.verdict, chance=1.0))


def _same_answer(one: Asked, other: Asked) -> bool:
    """Whether the cache holds the same answer for both, and nothing says that they differ."""
    if one.seen is None or other.seen is None:
        return False
    same = one.seen.entry.group == other.seen.entry.group
    return same and not vetoed(compare(other.facts, one.facts))
