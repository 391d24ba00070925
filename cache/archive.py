"""What the semantic cache keeps outside of its process: questions, and every label.

The in-process index is always the one that is searched; an archive is the truth that it is rebuilt
from, and where gateways meet that share one. Vectors are kept as int8, so that a start embeds
nothing. It has two kinds of rows:

    Kept      a question with its answer
    Lesson    a label, and what was asked since the one before it

What a namespace has learnt is the sum of its lessons, and summing up is what bounds them: now and
then a gateway writes a `Summary` of all that it has heard, and the lessons in it may go. Lessons
are numbered by who taught them, and a summary says up to which number it has heard each teller; so
a lesson is never counted twice, whoever summed up when, and none is lost between two summaries.

Every call returns at once: a slow archive queues, in bounded memory, and what it cannot keep is
dropped and told to `on_event` (a lesson that is lost is made up for by the next summary). `flush`
waits until all that was told is as durable as the archive makes it, which survives the death of
the process. No call fails a request.

tests/contract/test_archive.py holds each archive to this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final, Protocol, TypeAlias

import msgspec

KEPT_TAIL: Final = 4000
"""Lessons of a namespace that are kept where no summary covers them: as many as a policy uses."""

LIFE_S: Final = 30 * 86_400.0
"""What was learnt of a namespace goes when nothing has been learnt there for so long."""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """One question. `vector` is int8; `recording` as `cache.replay.encode` wrote it; `key` and
    `group` are numbers within the namespace that grow with time."""

    namespace: bytes
    scope: str
    model: str
    """The one that was asked; `answered_by` is the one that answered."""
    answered_by: str
    key: int
    group: int
    question: str
    owner: str
    answer: str
    """Id of the answer, as its caller was told."""
    tags: tuple[str, ...]
    expires_at: float
    cost_tokens: float
    vector: bytes
    recording: bytes

    @property
    def held_bytes(self) -> int:
        texts = len(self.question) + len(self.owner) + sum(map(len, self.tags))
        return len(self.vector) + len(self.recording) + texts


class Lesson(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One label. `signs` are float32, see `cache.verify.SIGNS`; `asked` are the p (float32) of the
    requests since the teller's lesson before this one, of which `served` were answered from the
    cache, with `expected` wrong ones among them."""

    namespace: bytes
    teller: str
    number: int
    at: float
    key: int
    group: int
    similarity: float
    guarded: bool
    signs: bytes
    p_right: float
    chance: float
    right: bool
    source: str
    asked: bytes
    served: int
    expected: float
    scope: str = ""


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """What one namespace has learnt (`Space.snapshot`) from each teller's lessons up to `heard`."""

    namespace: bytes
    scope: str
    model: str
    at: float
    heard: dict[str, int]
    blob: bytes


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Questions that are no longer kept."""

    namespace: bytes
    keys: tuple[int, ...]


class Erasure(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What to forget: questions that match everything named here, and all others with the same
    answer. Naming nothing means all of them."""

    scope: str | None = None
    model: str | None = None
    """Asked for, or the one that answered."""
    tag: str | None = None
    owner: str | None = None
    answer: str | None = None

    def matches(self, kept: Row) -> bool:
        return (
            self.scope in (None, kept.scope)
            and self.model in (None, kept.model, kept.answered_by)
            and (self.tag is None or self.tag in kept.tags)
            and self.owner in (None, kept.owner)
            and self.answer in (None, kept.answer)
        )


class Lost(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What others told meanwhile was missed: what is held may be out of date, and must go."""


class Row(Protocol):
    """What an erasure looks at."""

    @property
    def namespace(self) -> bytes: ...
    @property
    def group(self) -> int: ...
    @property
    def scope(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def answered_by(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def owner(self) -> str: ...
    @property
    def answer(self) -> str: ...


News: TypeAlias = Kept | Dropped | Lesson | Erasure | Lost
OnNews: TypeAlias = Callable[[News], Awaitable[object]]


class Archive(Protocol):
    async def open(self) -> None:
        """Make ready; called once, before anything else."""

    async def close(self) -> None:
        """Flush and let go of threads, files and connections; calling it again does nothing."""

    async def keep(self, kept: Kept) -> None: ...

    async def drop(self, dropped: Dropped) -> None: ...

    async def teach(self, lesson: Lesson) -> None: ...

    async def sum_up(self, summary: Summary) -> None:
        """Replaces the namespace's summary. The lessons in it need not be kept any longer."""

    async def erase(self, erasure: Erasure) -> int:
        """When it returns, nothing that matches is loaded, here or by another gateway; the number
        of questions. Raises StoreFault where that cannot be said."""

    async def flush(self) -> None: ...

    def load(self) -> AsyncIterator[Kept | Summary | Lesson]:
        """Everything: the questions, oldest first in each scope, then the summaries, then the
        lessons that may not be in them, in the order in which they were taught."""

    def follow(self, on_news: OnNews) -> None:
        """Tell of what other gateways change from now on, within a second. Called once."""

    @property
    def in_touch(self) -> bool:
        """Whether all that others have erased up to a moment ago has been told."""


class MemoryArchive:
    """For tests, and for whoever hands a cache over within one process."""

    def __init__(self) -> None:
        self.questions: dict[tuple[bytes, int], Kept] = {}
        self.lessons: list[Lesson] = []
        self.summaries: dict[bytes, Summary] = {}
        self.in_touch = True

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """Nor to close."""

    async def flush(self) -> None:
        """Nothing is queued."""

    async def keep(self, kept: Kept) -> None:
        self.questions[kept.namespace, kept.key] = kept

    async def drop(self, dropped: Dropped) -> None:
        for key in dropped.keys:
            self.questions.pop((dropped.namespace, key), None)

    async def teach(self, lesson: Lesson) -> None:
        self.lessons.append(lesson)

    async def sum_up(self, summary: Summary) -> None:
        self.summaries[summary.namespace] = summary
        self.lessons = [one for one in self.lessons if not covers(summary, one)]

    async def erase(self, erasure: Erasure) -> int:
        doomed = doomed_groups(self.questions.values(), erasure)
        gone = [at for at, one in self.questions.items() if (one.namespace, one.group) in doomed]
        for at in gone:
            del self.questions[at]
        return len(gone)

    async def load(self) -> AsyncIterator[Kept | Summary | Lesson]:
        for kept in sorted(self.questions.values(), key=lambda one: one.key):
            yield kept
        for summary in list(self.summaries.values()):
            yield summary
        for lesson in list(self.lessons):
            yield lesson

    def follow(self, on_news: OnNews) -> None:
        """Nobody else changes it."""


def doomed_groups(rows: Iterable[Row], erasure: Erasure) -> set[tuple[bytes, int]]:
    """(namespace, group) of all that matches: an answer goes with any of its questions."""
    return {(row.namespace, row.group) for row in rows if erasure.matches(row)}


def covers(summary: Summary, lesson: Lesson) -> bool:
    return (
        summary.namespace == lesson.namespace
        and summary.heard.get(lesson.teller, -1) >= lesson.number
    )
