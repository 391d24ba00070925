"""What a namespace of the semantic cache is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from sys import getsizeof
from typing import Final

from cache.replay import Recording, bytes_of_tags
from cache.verify import Record, Sighting
from cache.verify_state import State
from cache.who import tenant_of

MOST_SAID: Final = 200
"""People of whom it is remembered what they said of one answer."""

ENTRY_BYTES: Final = 1000
"""What a question occupies beside its vector, its texts and its answer; bench/semantic_speed.py."""


@dataclass(slots=True)
class Group:
    """One answer. `recording` is its newest wording that was verified, which was made for `owner`
    and given under the id `answer`: the question that it came with may be gone, or was not kept."""

    number: int
    recording: Recording
    owner: str
    answer: str
    record: Record = field(default_factory=Record)
    keys: set[int] = field(default_factory=set)
    questions_bytes: int = 0
    """Of its questions, as `Entry.held_bytes` tells."""
    users: set[str] = field(default_factory=set)
    """Some owners who got it: one of each tenant, and a second one."""
    spoke: set[tuple[str, bool]] = field(default_factory=set)
    """Who has praised it, and who complained."""

    @property
    def held_bytes(self) -> int:
        return self.recording.held_bytes + self.questions_bytes

    def given_to(self, owner: str) -> None:
        if len(self.users) < 2 or tenant_of(owner) not in set(map(tenant_of, self.users)):
            self.users.add(owner)

    def says(self, owner: str, *, right: bool) -> bool:
        """Whether it counts what an owner says: each is heard once, and only so many are."""
        said = (owner, right)
        if said in self.spoke or len(self.spoke) >= MOST_SAID:
            return False
        self.spoke.add(said)
        return True

    @property
    def is_refused(self) -> bool:
        """Whether enough of those who share it have complained: two tenants where several do, two
        users where several of one do; else the one."""
        complained = {owner for owner, right in self.spoke if not right}
        if len(set(map(tenant_of, self.users))) > 1:
            return len(set(map(tenant_of, complained))) > 1
        return len(complained) >= min(2, len(self.users))


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept question; its facts are read again when it is near, since they occupy as much
    as all the rest. `owner` is whoever asked it, `answer` the id of what they were told."""

    key: int
    question: str
    group: int
    owner: str
    answer: str
    tags: tuple[str, ...]

    @property
    def held_bytes(self) -> int:
        """Memory that this question occupies, beside its vector."""
        texts = getsizeof(self.question) + getsizeof(self.owner) + getsizeof(self.answer)
        return ENTRY_BYTES + texts + bytes_of_tags(self.tags)


@dataclass(frozen=True, slots=True)
class Labels:
    """A question, or the wording of an answer, as an erasure sees it."""

    namespace: bytes
    group: int
    scope: str
    model: str
    answered_by: str
    tags: tuple[str, ...]
    owner: str
    answer: str


@dataclass(eq=False, slots=True)
class Coming:
    """An answer that is still compared before it is kept. `unwanted`: it was erased meanwhile, or
    its namespace forgotten."""

    labels: Labels
    unwanted: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A lookup: the sighting of the nearest answer, and the groups near it, nearest first."""

    sighting: Sighting
    entry: Entry
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SpaceState:
    """One namespace for the dashboard; no `promise` under a policy that makes none."""

    namespace: str
    scope: str
    model: str
    entries: int
    answers: int
    held_bytes: int
    labels_by_source: dict[str, int]
    promise: State | None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a namespace is a namespace of."""

    namespace: bytes
    scope: str
    model: str

    def labels(
        self, group: int, answered_by: str, tags: tuple[str, ...], owner: str, answer: str
    ) -> Labels:
        """Of a question, or a wording, that belongs here."""
        place = (self.namespace, group, self.scope, self.model)
        return Labels(*place, answered_by, tags, owner, answer)
