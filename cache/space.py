"""One namespace of the semantic cache: its questions, its answers, and what it has learnt.

    question ─┐
    question ─┼─► group: one answer, and how often it was checked
    question ─┘
    question ───► group

Everything in a namespace was asked with the same system prompt, tools, parameters, model weights,
policy and tenant scope; only the last user text differs. Questions whose answers agreed share a
group: a new wording of a known question is another key to the same answer, and the agreement of
neighbours is what the decision rests on most (cache/verify.py).

Synchronous, in memory, owned by cache/semantic.py. Bounds: a namespace drops its oldest questions
beyond `max_entries`, a user's oldest beyond `max_per_owner`, so that nobody can fill it alone.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

import numpy as np

from cache.archive import Kept
from cache.embed import Vector
from cache.index import Index
from cache.replay import Recording, decode
from cache.verify import NEAREST, Neighbour, Policy, Record, Sighting, sight
from cache.verify_budget import Budgeted, State
from cache.verify_facts import Facts, compare, read

SUPERSEDED = 0.985
"""A question this near whose answer came out differently was not wrong but is out of date."""


CLOSED_FOR = 3000
AWAKE = 10


@dataclass(slots=True)
class Group:
    """One answer. `recording` is its newest wording that was verified."""

    number: int
    recording: Recording
    record: Record = field(default_factory=Record)
    keys: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept question. `owner` is whoever asked it; `born` in seconds since the epoch."""

    key: int
    question: str
    facts: Facts
    group: int
    owner: str
    born: float
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """A lookup: the sighting of the nearest answer, and the groups near it, nearest first."""

    sighting: Sighting
    entry: Entry
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    max_entries: int = 50_000
    max_per_owner: int = 10_000


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


class Space:
    def __init__(
        self, policy: Policy, dimensions: int, bounds: Bounds, *, reports: bool = False
    ) -> None:
        self.policy = policy
        self._closed = self._rested = 0
        self._reports = reports
        self.dropped: list[int] = []
        """If `reports`: keys of which an archive is to be told, and who tells it empties this."""
        self.sources: Counter[str] = Counter()
        """Labels by what they rest on (cache/agree.py)."""
        self._bounds = bounds
        self._index = Index(dimensions)
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._groups: dict[int, Group] = {}
        self._owners: dict[str, OrderedDict[int, None]] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def held_bytes(self) -> int:
        answers = sum(group.recording.held_bytes for group in self._groups.values())
        texts = sum(400 + 12 * len(e.question) for e in self._entries.values())
        return self._index.held_bytes + answers + texts

    def entry(self, key: int) -> Entry | None:
        return self._entries.get(key)

    def group(self, number: int) -> Group | None:
        return self._groups.get(number)

    # ------------------------------------------------------------------ worth the trouble?

    def note(self, *, allowed: bool) -> None:
        """Whether the policy allowed a hit for the request that was just looked up."""
        self._closed = 0 if allowed else self._closed + 1

    def rests(self) -> bool:
        """Whether to leave the next request alone, to save its embedding: where nothing was
        allowed for long, only each `AWAKE`th is looked at, which is enough to notice a change."""
        if self._closed < CLOSED_FOR:
            return False
        self._rested += 1
        return self._rested % AWAKE != 0

    # ------------------------------------------------------------------ reading

    def look(self, facts: Facts, vector: Vector, now: float) -> Seen | None:
        """The nearest answers that are still fresh; stale ones met on the way are dropped."""
        entries = [
            (self._entries[hit.key], hit.cosine) for hit in self._index.search(vector, NEAREST)
        ]
        fresh = [(entry, cosine) for entry, cosine in entries if self._is_fresh(entry, now)]
        if not fresh:
            return None
        near = [
            Neighbour(entry.key, entry.group, cosine, now - self._stored_at(entry))
            for entry, cosine in fresh
        ]
        top = fresh[0][0]
        record = self._groups[top.group].record
        sighting = sight(near, compare(facts, top.facts), record)
        return Seen(sighting, top, tuple(dict.fromkeys(one.group for one in near)))

    def _stored_at(self, entry: Entry) -> float:
        return self._groups[entry.group].recording.stored_at

    def _is_fresh(self, entry: Entry, now: float) -> bool:
        if self._groups[entry.group].recording.expires_at > now:
            return True
        self.drop(entry.key)
        return False

    # ------------------------------------------------------------------ writing

    def check(self, number: int, *, right: bool) -> None:
        """Book a label on a group, if it is still there."""
        group = self._groups.get(number)
        if group is not None:
            record = group.record
            group.record = Record(record.right + right, record.wrong + (not right))

    def renew(self, number: int, recording: Recording) -> None:
        """A fresh answer said the same: it is the younger wording."""
        group = self._groups.get(number)
        if group is not None:
            group.recording = recording

    def add(
        self,
        question: str,
        facts: Facts,
        vector: Vector,
        recording: Recording,
        *,
        owner: str,
        group: int | None = None,
    ) -> int:
        """Keep a question with its answer, or as another key of `group`; returns its key."""
        key = self._next
        number = group if group in self._groups else key
        assert number is not None
        home = self._groups.get(number)
        tags = tuple(sorted({*recording.tags, *(home.recording.tags if home else ())}))
        entry = Entry(key, question, facts, number, owner, recording.stored_at, tags)
        self._insert(entry, vector, recording)
        return key

    def put_back(self, kept: Kept) -> None:
        """A question from before a restart. One whose answer cannot be read is left out."""
        group = self._groups.get(kept.group)
        recording = group.recording if group is not None else decode(kept.recording)
        if recording is None or kept.key in self._entries:
            return
        vector = np.frombuffer(kept.vector, np.int8).astype(np.float32)
        entry = Entry(
            key=kept.key,
            question=kept.question,
            facts=read(kept.question),
            group=kept.group,
            owner=kept.owner,
            born=recording.stored_at,
            tags=recording.tags,
        )
        self._insert(entry, vector, recording)

    def _insert(self, entry: Entry, vector: Vector, recording: Recording) -> None:
        key = entry.key
        self._next = max(self._next, key + 1)
        home = self._groups.setdefault(entry.group, Group(entry.group, recording))
        home.keys.add(key)
        self._entries[key] = entry
        self._index.add(key, vector)
        owned = self._owners.setdefault(entry.owner, OrderedDict())
        owned[key] = None
        if len(owned) > self._bounds.max_per_owner:
            self.drop(next(iter(owned)))
        if len(self._entries) > self._bounds.max_entries:
            self.drop(next(iter(self._entries)))

    def drop(self, key: int) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if self._reports:
            self.dropped.append(key)
        self._index.remove(key)
        owned = self._owners[entry.owner]
        del owned[key]
        if not owned:
            del self._owners[entry.owner]
        group = self._groups[entry.group]
        group.keys.discard(key)
        if not group.keys:
            del self._groups[entry.group]

    def drop_group(self, number: int) -> None:
        group = self._groups.get(number)
        for key in list(group.keys) if group is not None else ():
            self.drop(key)

    def purge(self, *, tag: str | None = None, owner: str | None = None) -> int:
        """Drop what carries the tag or was asked by the owner, everything if neither is given;
        an answer goes with any of its questions. Returns the number of questions dropped."""
        before = len(self._entries)
        doomed = {
            entry.group
            for entry in self._entries.values()
            if (tag is None or tag in entry.tags) and (owner is None or entry.owner == owner)
        }
        for number in doomed:
            self.drop_group(number)
        return before - len(self._entries)

    def state(self, namespace: str, scope: str, model: str) -> SpaceState:
        return SpaceState(
            namespace=namespace,
            scope=scope,
            model=model,
            entries=len(self._entries),
            answers=len(self._groups),
            held_bytes=self.held_bytes,
            labels_by_source=dict(self.sources),
            promise=self.policy.state() if isinstance(self.policy, Budgeted) else None,
        )
