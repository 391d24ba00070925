"""The routers that bench/cascade.py compares, and how a ranking of questions is graded.

Every router gives each question a score, higher meaning "rather to the large model". Sending the
top k to the large model for k = 0 … n draws a curve of PGR, the share of the gap between the two
models' accuracies that is recovered: APGR is its mean, CPT50 and CPT80 the per cent of questions
sent when it reaches .5 and .8 (RouteLLM's measures, on every k instead of 11 thresholds).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from bench.cascade_data import Graded
from cascade.features import BEFORE, before
from cascade.fit import Plan, answer_plan, embedding_plan, feature_plan, fit_gain
from cascade.gain import GainModel
from cascade.judge import AFTER, Answered, after
from engine.contract import Call

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grades:
    apgr: float
    cpt50: float
    cpt80: float


@dataclass(slots=True)
class Table:
    """A graded set with everything that a router may look at, in rows."""

    graded: Graded
    embedding: NDArray[np.float32]
    answer: NDArray[np.float32] | None = None
    before: Floats = field(init=False)
    after: Floats | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.before = np.array([before(_call(prompt)) for prompt in self.graded.prompts])
        if self.graded.answers:
            pairs = zip(self.graded.prompts, self.graded.answers, strict=True)
            self.after = np.array([after(p, Answered(a, finish="stop")) for p, a in pairs])

    @property
    def gain(self) -> Floats:
        gain: Floats = self.graded.large - self.graded.small
        return gain

    def inputs(self, rows: Rows, names: tuple[str, ...]) -> dict[str, NDArray[np.floating]]:
        return {name: getattr(self, name)[rows] for name in names}


# ruff: noqa: ARG001 - all scorers have one shape
Scorer = Callable[[Table, Rows, Rows, np.random.Generator], Floats]
"""(table, rows to fit on, rows to score, rng) → scores."""


def _call(prompt: str) -> Call:
    return Call(kind="text", model="auto", scope="bench", prompt=prompt)


def grade(scores: Floats, gain: Floats) -> Grades:
    order = np.argsort(-scores, kind="stable")
    pgr = np.concatenate(([0.0], np.cumsum(gain[order]))) / gain.sum()
    at = np.arange(len(pgr)) / len(gain)
    apgr = float(np.trapezoid(pgr, at))
    first = [100 * float(at[np.argmax(pgr >= goal)]) for goal in (0.5, 0.8)]
    return Grades(apgr, first[0], first[1])


def random(table: Table, fit: Rows, rows: Rows, rng: np.random.Generator) -> Floats:
    return rng.random(len(rows))


def length(table: Table, fit: Rows, rows: Rows, rng: np.random.Generator) -> Floats:
    return np.array([float(len(table.graded.prompts[row])) for row in rows])


def task_mean(table: Table, fit: Rows, rows: Rows, rng: np.random.Generator) -> Floats:
    """Knows each question's subject, which the others do not."""
    groups, gain = np.array(table.graded.groups), table.gain
    means = {g: float(gain[fit][groups[fit] == g].mean()) for g in set(groups[fit])}
    overall = float(gain[fit].mean())
    return np.array([means.get(group, overall) for group in groups[rows]])


def logistic(table: Table, fit: Rows, rows: Rows, rng: np.random.Generator) -> Floats:
    """Two logistic regressions on the embedding; the difference of their probabilities."""
    sides = []
    for side in (table.graded.large, table.graded.small):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegression(C=1.0, max_iter=500).fit(table.embedding[fit], side[fit])
        sides.append(model.predict_proba(table.embedding[rows])[:, 1])
    return np.asarray(sides[0] - sides[1], dtype=np.float64)


def neighbours(table: Table, fit: Rows, rows: Rows, rng: np.random.Generator) -> Floats:
    """The mean gain of the nearest: 200 on large sets, 100 on small ones."""
    count = 200 if len(fit) > 2000 else 100
    near = np.argpartition(-(table.embedding[rows] @ table.embedding[fit].T), count, axis=1)
    means: Floats = table.gain[fit][near[:, :count]].mean(axis=1)
    return means


def oracle(table: Table, fit: Rows, rows: Rows, rng: np.random.Generator) -> Floats:
    return table.gain[rows]


PLANS: dict[str, Plan] = {
    "embedding": embedding_plan(384),
    "before": feature_plan(BEFORE),
    "after": answer_plan(AFTER),
    "answer": embedding_plan(384),
}


def fit_ours(
    table: Table, fit: Rows, names: tuple[str, ...], rng: np.random.Generator
) -> GainModel:
    plans = {name: PLANS[name] for name in names}
    graded = table.graded
    return fit_gain(table.inputs(fit, names), plans, graded.small[fit], graded.large[fit], rng=rng)


def ours(*names: str) -> Scorer:
    """The gain model of cascade/ on these blocks of inputs."""

    def score(table: Table, fit: Rows, rows: Rows, rng: np.random.Generator) -> Floats:
        model = fit_ours(table, fit, names, rng)
        return gains(model, table, rows, names)

    return score


def gains(model: GainModel, table: Table, rows: Rows, names: tuple[str, ...]) -> Floats:
    estimates = model.estimate_many(table.inputs(rows, names))
    difference: Floats = estimates[:, 1] - estimates[:, 0]
    return difference


def without(scorer: Scorer, *features: str) -> Scorer:
    """The same with some of the answer's features blanked: what they are worth."""
    columns = [AFTER.index(name) for name in features]

    def score(table: Table, fit: Rows, rows: Rows, rng: np.random.Generator) -> Floats:
        kept = table.after
        assert kept is not None
        blanked = kept.copy()
        blanked[:, columns] = 0.0
        table.after = blanked
        try:
            return scorer(table, fit, rows, rng)
        finally:
            table.after = kept

    return score
