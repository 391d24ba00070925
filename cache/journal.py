"""What one namespace tells its archive: questions dropped, labels, and now and then a summary.

A lesson is written at the moment of its label and a summary at the moment of a lesson, so that the
two never overlap: everything up to that lesson is in the summary, and nothing after it. Who teaches
numbers its lessons, and the journal knows up to which number it has heard each teller, itself
included (see cache/archive.py).

Synchronous; cache/keeper.py takes the pages and sends them off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from cache.archive import Dropped, Lesson, Summary
from cache.entry import Origin
from cache.verify import Floats, Sighting, Verdict
from cache.verify_state import Since

SUM_UP_EVERY: Final = 100
"""Lessons of one's own between two summaries."""

TELLERS: Final = 64
"""As many tellers are remembered: each start of a gateway is a new one."""

Page: TypeAlias = Dropped | Lesson | Summary


@dataclass(slots=True)
class Journal:
    """Owned by one namespace. `numbers` and `waiting` are shared by all journals of one teller:
    whoever has something to tell stands in the latter."""

    origin: Origin
    teller: str
    numbers: Iterator[int]
    waiting: dict[bytes, Journal]
    clock: Callable[[], float]
    heard: dict[str, int] = field(default_factory=dict)
    _pages: list[Page] = field(default_factory=list)
    _dropped: list[int] = field(default_factory=list)
    _since_summary: int = 0

    def drop(self, key: int) -> None:
        self._dropped.append(key)
        self.waiting[self.origin.namespace] = self

    def teach(
        self, sighting: Sighting, verdict: Verdict, since: Since, *, right: bool, source: str
    ) -> None:
        number = next(self.numbers)
        self._hear(self.teller, number)
        self._since_summary += 1
        self.waiting[self.origin.namespace] = self
        self._pages.append(
            Lesson(
                namespace=self.origin.namespace,
                teller=self.teller,
                number=number,
                at=self.clock(),
                key=sighting.key,
                group=sighting.group,
                similarity=sighting.similarity,
                guarded=sighting.guarded,
                signs=_packed(sighting.signs),
                p_right=verdict.p_right,
                chance=verdict.chance,
                right=right,
                source=source,
                asked=_packed(np.array(since.asked)),
                served=since.served,
                expected=since.expected,
                scope=self.origin.scope,
            )
        )

    @property
    def summary_is_due(self) -> bool:
        return self._since_summary >= SUM_UP_EVERY

    def sum_up(self, blob: bytes) -> None:
        """`blob` holds every lesson up to this moment."""
        self._since_summary = 0
        origin = self.origin
        summary = Summary(
            origin.namespace, origin.scope, origin.model, self.clock(), dict(self.heard), blob
        )
        self._pages.append(summary)

    def is_new(self, lesson: Lesson) -> bool:
        """Whether the lesson is one that was not heard before; from now on it was."""
        if lesson.number <= self.heard.get(lesson.teller, -1):
            return False
        self._hear(lesson.teller, lesson.number)
        return True

    def take_over(self, summary: Summary) -> None:
        for teller, number in summary.heard.items():
            self._hear(teller, max(number, self.heard.get(teller, -1)))

    def take(self) -> list[Page]:
        """Everything since the last time, in order."""
        pages, self._pages = self._pages, []
        dropped, self._dropped = self._dropped, []
        return [Dropped(self.origin.namespace, tuple(dropped)), *pages] if dropped else pages

    def _hear(self, teller: str, number: int) -> None:
        self.heard.pop(teller, None)
        self.heard[teller] = number
        if len(self.heard) > TELLERS:
            del self.heard[next(iter(self.heard))]


def _packed(numbers: Floats) -> bytes:
    return numbers.astype(np.float32).tobytes()


def sighting_of(lesson: Lesson) -> Sighting:
    signs = np.frombuffer(lesson.signs, np.float32).astype(np.float64)
    return Sighting(lesson.key, lesson.group, lesson.similarity, lesson.guarded, signs)


def verdict_of(lesson: Lesson) -> Verdict:
    return Verdict("explore", lesson.p_right, lesson.chance, "told")


def since_of(lesson: Lesson) -> Since:
    asked = np.frombuffer(lesson.asked, np.float32)
    return Since(tuple(asked.tolist()), lesson.served, lesson.expected)
