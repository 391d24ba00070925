"""Labelled requests as numbers, and what each look at them says: the arithmetic of calibrate.py.

A look is a score per row: s₀ before token 1, s₁ after an answer's first tokens, s₂ after the whole
of it (routes/learned.py). One judge gives both of the last two, so it learns from both views: each
answer's first tokens and, where it goes on, all of it. Rows of one conversation never judge each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.features import BEFORE, before, question
from cascade.fit import Plan, answer_plan, embedding_plan, feature_plan, fit_gain, out_of_fold
from cascade.gain import Floats, GainModel, scores_of
from cascade.judge import AFTER, after, holds_whole
from cascade.labels import Labelled, first_tokens, groups_of, tokens_of
from cascade.routes.learned import Scorer
from engine.contract import Call

EmbedMany = Callable[[Sequence[Call]], NDArray[np.float32]]
"""Calls → [n, d] unit vectors, the same that requests will get; NaN for a call that has none, which
is then left to the large model, as it will be."""
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class View:
    """How much of an answer is seen: `hold_tokens` at first (None: all), then, unless
    `whole_tokens` is 0, all of it if it is no longer than that."""

    hold_tokens: int | None
    whole_tokens: int = 0

    def held(self, row: Labelled) -> int | None:
        """A document is held whole from the start, as in service."""
        return None if holds_whole(row.call) else self.hold_tokens


@dataclass(frozen=True, slots=True)
class Looks:
    """s₀, s₁ and s₂ of some rows. s₁ is None where nothing is judged, s₂ where nothing is waited
    for. `going`: the answer goes on after what is held back; `over`: for too long."""

    first: Floats
    judged: Floats | None
    whole: Floats | None
    going: NDArray[np.bool_]
    over: NDArray[np.bool_]

    def score(self, margin: float) -> Floats:
        return self.first if self.judged is None else np.maximum(self.first - margin, self.judged)

    def whole_score(self, margin: float, early: float) -> Floats:
        assert self.judged is not None and self.whole is not None, "no whole answers"  # noqa: PT018
        early_look = np.where(self.going, self.judged - early, -np.inf)
        last_look = np.where(self.over, np.inf, self.whole)
        return np.maximum(np.maximum(self.first - margin, early_look), last_look)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Rows to fit a judge on: each answer's first tokens, then the whole of those that go on."""

    rows: Rows
    inputs: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Table:
    """`inputs["after"]` is of the first tokens, `whole` of all of them (None: not to be judged);
    `said` counts them."""

    inputs: dict[str, NDArray[Any]]
    whole: Floats | None
    said: Floats
    going: NDArray[np.bool_]
    over: NDArray[np.bool_]
    small: Floats
    large: Floats
    chars: Floats
    groups: Rows
    tokens: Floats | None
    weights: Floats
    volunteered: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[Labelled], view: View, embed: EmbedMany | None) -> Table:
        inputs: dict[str, NDArray[Any]] = {"before": np.array([before(row.call) for row in rows])}
        if embed is not None:
            inputs["embedding"] = embed([row.call for row in rows])
        answers = [row.answer for row in rows if row.answer is not None]
        held = [view.held(row) for row in rows]
        said = np.zeros(len(rows))
        going = np.zeros(len(rows), dtype=np.bool_)
        whole = None
        if len(answers) == len(rows):
            said = np.array([float(tokens_of(answer)) for answer in answers])
            going = np.array([k is not None and n > k for n, k in zip(said, held, strict=True)])
            inputs["after"] = np.array([_after(row, k) for row, k in zip(rows, held, strict=True)])
            if view.hold_tokens is not None and view.whole_tokens > 0:
                whole = inputs["after"].copy()
                for at in np.flatnonzero(going):
                    whole[at] = _after(rows[int(at)], None)
        return cls(
            inputs,
            whole,
            said,
            going,
            going & (said > view.whole_tokens),
            np.array([row.small for row in rows]),
            np.array([row.large for row in rows]),
            np.array([float(len(question(row.call))) for row in rows]),
            np.array(groups_of(rows)),
            np.array([row.tokens for row in rows]) if all(row.tokens for row in rows) else None,
            np.array([row.weight for row in rows]),
            np.array([row.volunteered for row in rows]),
        )

    def pick(self, rows: Rows) -> Table:
        """Some of the rows, as a table of their own."""
        _, groups = np.unique(self.groups[rows], return_inverse=True)
        return Table(
            {name: values[rows] for name, values in self.inputs.items()},
            None if self.whole is None else self.whole[rows],
            self.said[rows],
            self.going[rows],
            self.over[rows],
            self.small[rows],
            self.large[rows],
            self.chars[rows],
            groups,
            self.lengths(rows),
            self.weights[rows],
            self.volunteered[rows],
        )

    @property
    def losses(self) -> Floats:
        losses: Floats = self.large - self.small
        return losses

    @property
    def blind(self) -> NDArray[np.bool_]:
        """Rows without a vector, where one is needed."""
        if "embedding" not in self.inputs:
            return np.zeros(len(self.small), dtype=np.bool_)
        blind: NDArray[np.bool_] = np.isnan(self.inputs["embedding"]).any(axis=1)
        return blind

    def names(self, judged: bool) -> list[str]:
        return [name for name in self.inputs if judged or name != "after"]

    def weighing(self, rows: Rows) -> Floats | None:
        """None: all were drawn alike."""
        weights: Floats = self.weights[rows]
        return None if len(weights) == 0 or np.ptp(weights) == 0.0 else weights

    def lengths(self, rows: Rows) -> Floats | None:
        return None if self.tokens is None else self.tokens[rows]

    def take(self, rows: Rows, judged: bool) -> dict[str, NDArray[Any]]:
        return {name: self.inputs[name][rows] for name in self.names(judged)}

    def take_whole(self, rows: Rows) -> dict[str, NDArray[Any]]:
        assert self.whole is not None, "asked for whole answers where none are judged"
        return {**self.take(rows, True), "after": self.whole[rows]}

    def lesson(self, rows: Rows, judged: bool) -> Lesson:
        if not judged or self.whole is None:
            return Lesson(rows, self.take(rows, judged))
        going = rows[self.going[rows]]
        first, second = self.take(rows, True), self.take_whole(going)
        both = {name: np.concatenate([first[name], second[name]]) for name in first}
        return Lesson(np.concatenate([rows, going]), both)

    def plans(self, judged: bool) -> dict[str, Plan]:
        made = {"before": feature_plan(BEFORE), "after": answer_plan(AFTER)}
        if "embedding" in self.inputs:
            made["embedding"] = embedding_plan(self.inputs["embedding"].shape[1])
        return {name: made[name] for name in self.names(judged)}


def _after(row: Labelled, hold_tokens: int | None) -> Floats:
    assert row.answer is not None
    return after(question(row.call), first_tokens(row.answer, hold_tokens))


def held_out_looks(table: Table, rows: Rows, rng: np.random.Generator) -> Looks:
    def scores(judged: bool) -> Floats:
        lesson = table.lesson(rows, judged)
        estimates = out_of_fold(
            lesson.inputs,
            table.plans(judged),
            table.small[lesson.rows],
            table.large[lesson.rows],
            rng=rng,
            tokens=table.lengths(lesson.rows),
            groups=table.groups[lesson.rows],
        )
        return scores_of(estimates)

    first, going, over = scores(False), table.going[rows], table.over[rows]
    if "after" not in table.inputs:
        return Looks(first, None, None, going, over)
    both = scores(True)
    judged, whole = both[: len(rows)], None
    if table.whole is not None:
        whole = judged.copy()
        whole[going] = both[len(rows) :]
    return Looks(first, judged, whole, going, over)


def fit_scorer(
    table: Table, rows: Rows, rng: np.random.Generator, *, hold_tokens: int | None, embedder: str
) -> Scorer:
    def fit(judged: bool) -> GainModel:
        lesson, plans = table.lesson(rows, judged), table.plans(judged)
        named = embedder if "embedding" in lesson.inputs else ""
        sides = (table.small[lesson.rows], table.large[lesson.rows])
        tokens = table.lengths(lesson.rows)
        return fit_gain(lesson.inputs, plans, *sides, rng=rng, tokens=tokens, embedder=named)

    judge = fit(True) if "after" in table.inputs else None
    return Scorer(fit(False), judge, hold_tokens)


def looks_of(scorer: Scorer, table: Table, rows: Rows) -> Looks:
    blind = table.blind[rows]

    def scores(model: GainModel, inputs: dict[str, NDArray[Any]]) -> Floats:
        return np.where(blind, np.inf, scores_of(model.estimate_many(inputs)))

    first, over = scores(scorer.route, table.take(rows, False)), table.over[rows]
    judged = whole = None
    if scorer.judge is not None:
        judged = scores(scorer.judge, table.take(rows, True))
        if table.whole is not None:
            whole = scores(scorer.judge, table.take_whole(rows))
    return Looks(first, judged, whole, table.going[rows], over)
