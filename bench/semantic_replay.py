"""Plays a stream through a policy, thousands of requests a second.

The policies are the product's own (cache/verify*.py). What the simulator saves is the embedding
and the search: vectors are made once and kept on disk, the 512 nearest of every question in the
whole pool are found once, and "the nearest that are cached" is then the first of those that are.
In `play` answers are compared exactly: labels and groups are true. In `play_by_labels` both are
what a labeller makes of the answers, as in cache/teach.py (bench/semantic_labels.py).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.semantic_streams import Ints, Questions
from cache.embed import BUNDLED, OnnxEncoder, TextTooLong, prepare
from cache.space import SUPERSEDED
from cache.verify import NEAREST, PAIR_FROM, Neighbour, Policy, Record, Sighting, sight
from cache.verify_facts import Facts, compare, read

DEPTH = 512
FORWARD, EXPLORE, SERVE = range(3)
ACTIONS = {"forward": FORWARD, "explore": EXPLORE, "serve": SERVE}


def embedded(questions: Questions, folder: Path) -> NDArray[np.float32]:
    """(n, dimensions) unit vectors, kept in `folder`. A text over the window is all zeros: near
    to nothing, as the layer would leave it alone."""
    digest = hashlib.sha256("\0".join(questions.texts).encode()).hexdigest()[:16]
    path = folder / f"{digest}.npy"
    if path.exists():
        vectors: NDArray[np.float32] = np.load(path)
        return vectors
    encoder = OnnxEncoder(prepare(BUNDLED, folder / "models"))
    vectors = np.zeros((len(questions.texts), encoder.dimensions), np.float32)
    for index, text in enumerate(questions.texts):
        if index % 5000 == 0:
            print(f"  embedding {index:,} of {len(questions.texts):,}", file=sys.stderr)
        try:
            vectors[index] = encoder.encode(text)
        except TextTooLong:
            continue
    np.save(path, vectors)
    return vectors


class Pool:
    """Questions with their neighbours and facts. Comparisons are remembered across runs."""

    def __init__(self, questions: Questions, folder: Path) -> None:
        self.answers = np.array(questions.answers)
        self._facts: list[Facts] = [read(text) for text in questions.texts]
        self._pairs: dict[int, tuple[float, ...]] = {}
        vectors = embedded(questions, folder)
        depth = min(DEPTH, len(vectors) - 1)
        self.near = np.empty((len(vectors), depth), np.int32)
        self.cosine = np.empty((len(vectors), depth), np.float32)
        for start in range(0, len(vectors), 512):
            rows = slice(start, min(start + 512, len(vectors)))
            self._find(vectors, rows, depth)

    def _find(self, vectors: NDArray[np.float32], rows: slice, depth: int) -> None:
        cosines = vectors[rows] @ vectors.T
        cosines[np.arange(len(cosines)), np.arange(rows.start, rows.stop)] = -2
        best = np.argpartition(-cosines, depth - 1, axis=1)[:, :depth]
        values = np.take_along_axis(cosines, best, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        self.near[rows] = np.take_along_axis(best, order, 1)
        self.cosine[rows] = np.take_along_axis(values, order, 1)

    def pair(self, asked: int, kept: int) -> tuple[float, ...]:
        code = asked * len(self._facts) + kept
        known = self._pairs.get(code)
        if known is None:
            known = self._pairs[code] = compare(self._facts[asked], self._facts[kept])
        return known


@dataclass(frozen=True, slots=True)
class Played:
    """One run: per request what was done, whether the cached answer was (or would be) wrong, and
    the probability of being right that a caller was told (not a number where there was none)."""

    action: NDArray[np.int8]
    wrong: NDArray[np.bool_]
    told: NDArray[np.float32]

    @property
    def wrong_hits(self) -> NDArray[np.bool_]:
        return self.wrong & (self.action == SERVE)


def play(pool: Pool, order: Ints, policy: Policy) -> Played:
    """Empty cache, one pass over `order`, every label true and at once. A second is a request."""
    cached = np.zeros(len(pool.answers), bool)
    born = np.zeros(len(pool.answers), np.int64)
    records: dict[int, Record] = {}
    action = np.zeros(len(order), np.int8)
    wrong = np.zeros(len(order), np.bool_)
    told = np.full(len(order), np.nan, np.float32)
    answers = pool.answers.tolist()
    for now, asked in enumerate(order.tolist()):
        found = np.flatnonzero(cached[pool.near[asked]])[:NEAREST]
        if not len(found):
            policy.skip()
            cached[asked], born[asked] = True, now
            continue
        keys = pool.near[asked, found].tolist()
        cosines = pool.cosine[asked, found].tolist()
        near = [
            Neighbour(key, answers[key], cosine, float(now - born[key]))
            for key, cosine in zip(keys, cosines, strict=True)
        ]
        group = near[0].group
        record = records.get(group, Record())
        sighting = sight(near, pool.pair(asked, keys[0]), record)
        verdict = policy.decide(sighting)
        right = answers[asked] == group
        action[now], wrong[now], told[now] = ACTIONS[verdict.action], not right, verdict.told
        if verdict.action == "serve":
            continue
        policy.learn(sighting, verdict, right=right)
        records[group] = Record(record.right + right, record.wrong + (not right))
        if policy.keeps_twins or not right:
            cached[asked], born[asked] = True, now
    return Played(action, wrong, told)


# --------------------------------------------------------------------------- by labels

Right = Callable[[int, int, bool], bool]
"""(question asked, question whose answer is cached, whether that is the nearest: others are shown
to no judge) -> what the label says."""


class Kept:
    """The cache as the layer has it: which questions share an answer is what the labels said, and
    an answer that agrees with that of a group takes its place."""

    def __init__(self, questions: int) -> None:
        self.cached = np.zeros(questions, bool)
        self.group = np.zeros(questions, np.int64)
        self._holds: dict[int, int] = {}
        self._stored_at: dict[int, int] = {}
        self._records: dict[int, Record] = {}

    def look(self, pool: Pool, asked: int, now: int) -> list[Neighbour]:
        found = np.flatnonzero(self.cached[pool.near[asked]])[:NEAREST]
        keys, cosines = pool.near[asked, found].tolist(), pool.cosine[asked, found].tolist()
        return [
            Neighbour(key, group, cosine, float(now - self._stored_at[group]))
            for key, group, cosine in zip(keys, self.group[keys].tolist(), cosines, strict=True)
        ]

    def holds(self, group: int) -> int:
        """The question that was asked when the group's answer was made."""
        return self._holds[group]

    def record(self, group: int) -> Record:
        return self._records.get(group, Record())

    def check(self, group: int, *, right: bool) -> None:
        record = self.record(group)
        self._records[group] = Record(record.right + right, record.wrong + (not right))

    def add(self, asked: int, home: int, now: int) -> None:
        self.cached[asked], self.group[asked] = True, home
        self._holds[home], self._stored_at[home] = asked, now


def play_by_labels(pool: Pool, order: Ints, policy: Policy, right: Right) -> Played:
    """As `play`, for a policy that keeps twins. A hit is wrong if what is true of the question that
    its answer was made for is not true of the one asked."""
    kept, truth = Kept(len(pool.answers)), pool.answers.tolist()
    action = np.zeros(len(order), np.int8)
    wrong = np.zeros(len(order), np.bool_)
    told = np.full(len(order), np.nan, np.float32)
    for now, asked in enumerate(order.tolist()):
        near = kept.look(pool, asked, now)
        if not near:
            policy.skip()
            kept.add(asked, asked, now)
            continue
        top = near[0].group
        sighting = sight(near, pool.pair(asked, near[0].key), kept.record(top))
        verdict = policy.decide(sighting)
        action[now], told[now] = ACTIONS[verdict.action], verdict.told
        wrong[now] = truth[asked] != truth[kept.holds(top)]
        if verdict.action == "serve":
            continue
        said = right(asked, kept.holds(top), True)
        policy.learn(sighting, verdict, right=said)
        kept.check(top, right=said)
        kept.add(asked, top if said else _home(kept, near, asked, sighting, right), now)
    return Played(action, wrong, told)


def _home(kept: Kept, near: list[Neighbour], asked: int, sighting: Sighting, right: Right) -> int:
    """Where the answer belongs that is not the nearest's: cache/teach.py."""
    if sighting.similarity >= SUPERSEDED and not any(sighting.signs[PAIR_FROM:]):
        kept.cached[near[0].key] = False
    groups = [*dict.fromkeys(one.group for one in near)][1:4]
    return next((group for group in groups if right(asked, kept.holds(group), False)), asked)
