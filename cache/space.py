"""One namespace of the semantic cache: its questions, its answers, and what it has learnt.

    question ─┐
    question ─┼─► group: one answer, and how often it was checked
    question ─┘
    question ───► group

Everything in a namespace was asked with the same system prompt, tools, parameters, model weights,
policy and tenant scope; only the last user text differs. Questions whose answers agreed share a
group: a new wording of a known question is another key to the same answer, and the agreement of
neighbours is what the decision rests on most (cache/verify.py).

Synchronous, in memory, owned by cache/spaces.py; bounded by cache/quota.py.

A key is the time in milliseconds and 20 random bits, so that keys made by gateways that do not know
of each other do not meet, and grow with time.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter, OrderedDict
from functools import partial
from typing import Final

import msgspec
import numpy as np

from cache.archive import Erasure, Kept, Lesson, Summary
from cache.embed import Vector
from cache.entry import Entry, Group, Origin, Seen, SpaceState
from cache.erasing import doomed
from cache.index import Index, bytes_each
from cache.journal import Journal, sighting_of, since_of, verdict_of
from cache.kept import entry_of, kept_of
from cache.memory import Memory
from cache.quota import Quota
from cache.replay import Recording, decode
from cache.rest import Rest
from cache.verify import NEAREST, SIGNS, Neighbour, Policy, Record, Sighting, Verdict, sight
from cache.verify_budget import Budgeted
from cache.verify_facts import Facts, compare, read
from cache.verify_state import Since

SUPERSEDED: Final = 0.985
"""A question this near whose answer came out differently was not wrong but is out of date."""

LOST: Final = "lost"
"""Source of what is no label: an audit that ended without one."""

SPACE_BYTES: Final = 25_000
"""What a namespace occupies beside what it has learnt and what it keeps."""

_KEY_BITS: Final = 20

_reader = msgspec.msgpack.Decoder(tuple[bytes, dict[int, tuple[int, int]], dict[str, int]])
_packer = msgspec.msgpack.Encoder()


class Space:
    def __init__(  # noqa: PLR0917
        self,
        origin: Origin,
        policy: Policy,
        dimensions: int,
        quota: Quota,
        memory: Memory,
        journal: Journal | None = None,
    ) -> None:
        """`quota` is shared by the namespaces of a room, `memory` by all; without `journal` nothing
        is archived."""
        self.origin = origin
        self.policy = policy
        self.journal = journal
        self.sources: Counter[str] = Counter()
        """Labels by what they rest on (cache/agree.py)."""
        self.rest = Rest()
        self._promised = -1.0
        self._quota = quota
        self._memory = memory
        self._vector_bytes = bytes_each(dimensions)
        self._index = Index(dimensions)
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._groups: dict[int, Group] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def held_bytes(self) -> int:
        return sum(group.held_bytes for group in self._groups.values()) + self.learnt_bytes

    @property
    def learnt_bytes(self) -> int:
        """Of what was learnt here, and of the namespace itself."""
        learnt = self.policy.held_bytes if isinstance(self.policy, Budgeted) else 0
        return SPACE_BYTES + learnt

    def entry(self, key: int) -> Entry | None:
        return self._entries.get(key)

    def group(self, number: int) -> Group | None:
        return self._groups.get(number)

    def answer_of(self, number: int) -> str | None:
        """The id under which the answer of a group was first given."""
        group = self._groups.get(number)
        return None if group is None else self._entries[min(group.keys)].answer

    def follow(self, max_error: float) -> None:
        """What the operator promises now. Who rested under another promise looks again."""
        if max_error != self._promised:
            self._promised = max_error
            self.rest.wake()
            self.policy.follow(max_error)

    # ------------------------------------------------------------------ reading

    def look(
        self, facts: Facts, vector: Vector, now: float, ttl_s: float = math.inf
    ) -> Seen | None:
        """The nearest answers that are still fresh, also for who takes none older than `ttl_s`;
        stale ones met on the way are dropped."""
        entries = [
            (self._entries[key], cosine) for key, cosine in self._index.search(vector, NEAREST)
        ]
        fresh = [
            (entry, cosine)
            for entry, cosine in entries
            if self._is_fresh(entry, now) and now - self._stored_at(entry) < ttl_s
        ]
        if not fresh:
            return None
        near = [
            Neighbour(entry.key, entry.group, cosine, now - self._stored_at(entry))
            for entry, cosine in fresh
        ]
        top = fresh[0][0]
        record = self._groups[top.group].record
        sighting = sight(near, compare(facts, read(top.question)), record)
        return Seen(sighting, top, tuple(dict.fromkeys(one.group for one in near)))

    def _stored_at(self, entry: Entry) -> float:
        return self._groups[entry.group].recording.stored_at

    def _is_fresh(self, entry: Entry, now: float) -> bool:
        if self._groups[entry.group].recording.expires_at > now:
            return True
        self.drop(entry.key)
        return False

    # ------------------------------------------------------------------ writing

    def book(self, sighting: Sighting, verdict: Verdict, *, right: bool, source: str) -> None:
        """A label: whether the answer that was seen would have done."""
        self.policy.learn(sighting, verdict, right=right)
        self._check(sighting.group, source, right=right)
        self._teach(sighting, verdict, right=right, source=source)

    def lose(self, sighting: Sighting, verdict: Verdict) -> None:
        """An audit ended without a label: its caller hung up, or the model failed."""
        if isinstance(self.policy, Budgeted):
            self.policy.lose(verdict)
            self.sources[LOST] += 1
            self._teach(sighting, verdict, right=False, source=LOST)

    def _teach(self, sighting: Sighting, verdict: Verdict, *, right: bool, source: str) -> None:
        if self.journal is None:
            return
        since = self.policy.tell() if isinstance(self.policy, Budgeted) else Since((), 0, 0.0)
        self.journal.teach(sighting, verdict, since, right=right, source=source)
        if self.journal.summary_is_due and isinstance(self.policy, Budgeted):
            self.journal.sum_up(self.snapshot())

    def praise(self, number: int) -> None:
        """Somebody liked the answer of this group. That is no label: see `Hindsight.feedback`."""
        self._check(number, "", right=True)

    def blame(self, number: int) -> None:
        """Somebody complains of an answer that the model had made for them."""
        self._check(number, "feedback", right=False)

    def _check(self, number: int, source: str, *, right: bool) -> None:
        if source:
            self.sources[source] += 1
        group = self._groups.get(number)
        if group is not None:
            record = group.record
            group.record = Record(record.right + right, record.wrong + (not right))

    def renew(self, number: int, recording: Recording, *, owner: str, answer: str) -> None:
        """A fresh answer said the same: it is the younger wording."""
        group = self._groups.get(number)
        if group is not None:
            group.recording, group.owner, group.answer = recording, owner, answer
            group.given_to(owner)
            self._weigh(group)

    def add(
        self,
        question: str,
        vector: Vector,
        recording: Recording,
        *,
        owner: str,
        answer: str = "",
        group: int | None = None,
    ) -> int:
        """Keep a question with its answer, or as another key of `group`; returns its key."""
        key = int(recording.stored_at * 1000) << _KEY_BITS | secrets.randbits(_KEY_BITS)
        while key in self._entries:
            key += 1
        home = self._groups.get(group) if group is not None else None
        number = home.number if home is not None else key
        entry = Entry(key, question, number, owner, answer, recording.tags)
        self._insert(entry, vector, recording)
        return key

    def kept(self, key: int, vector: Vector) -> Kept | None:
        """The question as an archive keeps it; None if it is gone again."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        return kept_of(self.origin, entry, self._groups[entry.group].recording, vector)

    def put_back(self, kept: Kept) -> None:
        """A question from before a restart, or from another gateway. One whose answer cannot be
        read, or whose vector is another model's, is left out."""
        recording = decode(kept.recording)
        vector = np.frombuffer(kept.vector, np.int8).astype(np.float32)
        if recording is None or kept.key in self._entries or len(vector) != self._index.dimensions:
            return
        group = self._groups.get(kept.group)
        if group is not None and group.recording.stored_at < recording.stored_at:
            self.renew(kept.group, recording, owner=kept.owner, answer=kept.answer)
        self._insert(entry_of(kept), vector, recording)

    def _insert(self, entry: Entry, vector: Vector, recording: Recording) -> None:
        key = entry.key
        group = Group(entry.group, recording, entry.owner, entry.answer)
        home = self._groups.setdefault(entry.group, group)
        home.keys.add(key)
        home.given_to(entry.owner)
        self._entries[key] = entry
        home.questions_bytes += entry.held_bytes + self._vector_bytes
        self._index.add(key, vector)
        self._quota.add(id(self), key, entry.owner, self.drop)
        self._weigh(home)

    def _weigh(self, group: Group) -> None:
        """Tell how much it holds by now; it may have to go for that."""
        if self._groups.get(group.number) is group:
            group.recording.memo.grew = partial(self._weigh, group)
            place = (id(self), group.number)
            self._memory.weigh(*place, group.owner, group.held_bytes, self.drop_group)

    def use(self, group: Group, owner: str) -> None:
        """Its answer is given again."""
        group.given_to(owner)
        self._memory.use(id(self), group.number)

    def drop(self, key: int, *, told: bool = False) -> None:
        """`told`: the archive knows."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if self.journal is not None and not told:
            self.journal.drop(key)
        self._index.remove(key)
        self.policy.forget(key)
        self._quota.remove(id(self), key)
        group = self._groups[entry.group]
        group.keys.discard(key)
        group.questions_bytes -= entry.held_bytes + self._vector_bytes
        if not group.keys:
            del self._groups[entry.group]
            self._memory.remove(id(self), entry.group)

    def drop_group(self, number: int, *, told: bool = False) -> int:
        """Returns the number of questions dropped."""
        group = self._groups.get(number)
        keys = list(group.keys) if group is not None else []
        for key in keys:
            self.drop(key, told=told)
        return len(keys)

    def clear(self) -> None:
        """Let go of everything, as of what is no longer wanted here; the archive keeps it."""
        for key in list(self._entries):
            self.drop(key, told=True)

    def erase(self, erasure: Erasure) -> int:
        """Drop what matches, and all that shares an answer with it; the archive is told otherwise.
        Returns the number of questions dropped."""
        before = len(self._entries)
        going = doomed(self.origin, self._entries.values(), self._groups, erasure)
        for number in going.by_question:
            self.drop_group(number, told=True)
        # The archive holds no wording beside its question, and may not know these by it.
        for number in going.by_wording:
            self.drop_group(number)
        return before - len(self._entries)

    # ------------------------------------------------------------------ what was learnt

    def hear(self, lesson: Lesson) -> None:
        """A label from another gateway or from before a restart; one heard before is left out."""
        if self.journal is None or not self.journal.is_new(lesson):
            return
        if len(lesson.signs) != 4 * len(SIGNS) or len(lesson.asked) % 4:  # of another version
            return
        if isinstance(self.policy, Budgeted):
            self.policy.hear(since_of(lesson))
            if lesson.source == LOST:
                self.policy.lose(verdict_of(lesson))
                self.sources[LOST] += 1
        if lesson.source == LOST:
            return
        self.policy.learn(sighting_of(lesson), verdict_of(lesson), right=lesson.right)
        self._check(lesson.group, lesson.source, right=lesson.right)

    @property
    def is_ignorant(self) -> bool:
        """Whether nothing was ever learnt here."""
        return not self.sources

    def snapshot(self) -> bytes:
        """All that was learnt, for `take_over`."""
        policy = self.policy.snapshot() if isinstance(self.policy, Budgeted) else b""
        records = {
            number: (group.record.right, group.record.wrong)
            for number, group in self._groups.items()
            if group.record != Record()
        }
        return _packer.encode((policy, records, self.sources))

    def take_over(self, summary: Summary) -> None:
        """From before a restart, after the questions. What cannot be read is left out."""
        try:
            policy, records, sources = _reader.decode(summary.blob)
        except msgspec.DecodeError:
            return
        if isinstance(self.policy, Budgeted) and not self.policy.restore(policy):
            return
        if self.journal is not None:
            self.journal.take_over(summary)
        self.sources = Counter(sources)
        for number, (right, wrong) in records.items():
            group = self._groups.get(number)
            if group is not None:
                group.record = Record(right, wrong)

    def state(self) -> SpaceState:
        return SpaceState(
            namespace=self.origin.namespace.hex()[:16],
            scope=self.origin.scope,
            model=self.origin.model,
            entries=len(self._entries),
            answers=len(self._groups),
            held_bytes=self.held_bytes,
            labels_by_source=dict(self.sources),
            promise=self.policy.state() if isinstance(self.policy, Budgeted) else None,
        )
