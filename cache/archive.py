"""Where the semantic cache survives a restart: its questions and what it has learnt.

The in-process index is always the one that is searched; an archive is the truth that it is rebuilt
from. Vectors are kept as int8, so that a start embeds nothing. What a namespace has learnt (labels,
odds, ledger) is one blob, written now and then: losing the last hundred labels costs a few hits and
never the promise, because a policy that has seen less serves less.

Implementations hold a scope's rows apart and drop them by scope; an archive that fails is reported
and never fails a request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Kept:
    """One question. `vector` is int8; `recording` as `cache.replay.encode` wrote it; `key` and
    `group` are numbers within the namespace."""

    namespace: bytes
    scope: str
    model: str
    key: int
    group: int
    question: str
    owner: str
    vector: bytes
    recording: bytes


@dataclass(frozen=True, slots=True)
class Lessons:
    """What one namespace has learnt (`Budgeted.snapshot`)."""

    namespace: bytes
    blob: bytes


class Archive(Protocol):
    async def keep(self, kept: Kept) -> None: ...

    async def drop(self, namespace: bytes, keys: Sequence[int]) -> None: ...

    async def learnt(self, lessons: Lessons) -> None:
        """Replaces what was kept for the namespace."""

    def load(self) -> AsyncIterator[Kept | Lessons]:
        """Everything, each namespace's questions in the order in which they were kept."""


class MemoryArchive:
    """For tests, and for whoever hands a cache over within one process."""

    def __init__(self) -> None:
        self.questions: dict[tuple[bytes, int], Kept] = {}
        self.lessons: dict[bytes, Lessons] = {}

    async def keep(self, kept: Kept) -> None:
        self.questions[kept.namespace, kept.key] = kept

    async def drop(self, namespace: bytes, keys: Sequence[int]) -> None:
        for key in keys:
            self.questions.pop((namespace, key), None)

    async def learnt(self, lessons: Lessons) -> None:
        self.lessons[lessons.namespace] = lessons

    async def load(self) -> AsyncIterator[Kept | Lessons]:
        for kept in list(self.questions.values()):
            yield kept
        for lessons in list(self.lessons.values()):
            yield lessons
