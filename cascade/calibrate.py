"""From labelled requests to a policy with a promise: what `sluice calibrate` does.

    split by conversation ─▸ fit on one half ─▸ choose margin and cuts on its out-of-fold scores
                          └▸ test the cuts on the other half (promise.py) ─▸ policy, table, curves

The two halves never mix: the gain models, the margin and the cuts to test come from the first, the
promise from the second. Out-of-fold scores (each row scored by a model that has not seen its
conversation) are what the first half can say about itself without praise.

Routers do not transfer: one fitted on one kind of traffic does no better than a coin on another. So
the labels have to be the tenant's own, and where they are too few the result says how many it takes
instead of promising.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.features import BEFORE, before, question
from cascade.fit import Plan, answer_plan, embedding_plan, feature_plan, fit_gain, out_of_fold
from cascade.gain import Floats, GainModel, scores_of
from cascade.judge import AFTER, after
from cascade.labels import Labelled, first_tokens, groups_of
from cascade.promise import Promise, Region, choose_cut, cuts_worth_testing, plug_in_cut
from cascade.routes.learned import Quality, Scorer
from engine.contract import Call

EmbedMany = Callable[[Sequence[Call]], NDArray[np.float32]]
"""Calls → [n, d] unit vectors, the same that requests will get; NaN for a call that has none, which
is then left to the large model, as it will be."""
Progress = Callable[[str, float], None]
"""(step, share done 0 … 1)."""

LEAST_ROWS = 40
MARGINS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 10.0)
"""10 never skips the small model's attempt."""
CUT_RANGE, CUT_STEPS = 0.5, 80
"""`retest` tries cuts from that far below the region's top: fixed without looking at labels."""
FEW_POINTS = 0.05
"""Below this gap between the models, shares of the gap say little."""


class TooFewLabels(ValueError):
    """Not even a fit is possible."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What is to be found. `price_ratio`: what an answer of the small model costs, as a share of
    one of the large model."""

    promise: Promise
    hold_tokens: int | None = 16
    price_ratio: float = 0.1
    embedder: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality against the share of requests that go to the large model, both rising. `tried` is the
    share of requests that the small model is paid for, at each point."""

    name: str
    large_share: Floats
    quality: Floats


@dataclass(frozen=True, slots=True)
class Line:
    """A table row: how many large calls it takes to lose at most ε on the held-out half, as it
    looks there. Measured, not promised."""

    name: str
    large_share: float
    apgr: float


@dataclass(frozen=True, slots=True)
class Calibration:
    route: Quality
    small: float
    large: float
    fitted_on: int
    curves: tuple[Curve, ...]
    table: tuple[Line, ...]

    def summary(self) -> str:
        """What it promises, on how many labels; or what it takes to promise."""
        promise, cut = self.route.promise, self.route.cut
        lost, sure = 100 * promise.epsilon, 100 * (1 - promise.delta)
        if cut.promised:
            return (
                f"With {sure:.3g} % confidence at most {lost:.3g} points are lost against always "
                f"asking the large model, at {cut.large_share:.0%} large calls "
                f"(p = {cut.p_value:.3f} on {cut.labels} labels, fitted on {self.fitted_on} more)."
            )
        needed = 2 * promise.labels_needed
        return (
            f"No promise: {cut.labels} labels do not support keeping anything on the small model "
            f"at {lost:.3g} points and {sure:.3g} %. It takes at least {needed} labelled requests "
            "in all, usually several times that; or allow more points."
        )

    def notes(self) -> tuple[str, ...]:
        gap = self.large - self.small
        if gap <= 0:
            return ("The large model is no better than the small one on these labels.",)
        if gap < FEW_POINTS:
            return (f"The models differ by {100 * gap:.1f} points only: APGR says little.",)
        return ()


def _unheard(step: str, share: float) -> None:
    """Progress that nobody watches."""


def calibrate(
    rows: Sequence[Labelled],
    aim: Aim,
    *,
    embed: EmbedMany | None = None,
    progress: Progress = _unheard,
) -> Calibration:
    """Raises TooFewLabels below some dozens; with too few to promise it returns a route that is
    always-large and a summary that says so."""
    if len(rows) < LEAST_ROWS:
        raise TooFewLabels(f"{len(rows)} labels are too few; fit on {LEAST_ROWS} or more")
    rng = np.random.default_rng(aim.seed)
    progress("features", 0.0)
    table = _Table.of(rows, aim, embed)
    fit, rest = _halves(table.groups, table.volunteered, rng)
    fit = fit[~table.blind[fit]]
    if len(fit) < LEAST_ROWS // 2:
        raise TooFewLabels(f"only {len(fit)} rows have a vector to fit on")
    if not len(rest):
        raise TooFewLabels(
            "nothing but feedback cannot test a promise; add labels that were drawn at random"
        )
    progress("fitting", 0.2)
    held_out = _out_of_fold(table, fit, rng)
    margin = _best_margin(held_out, table, fit, aim)
    progress("fitting the last models", 0.7)
    scorer = replace(_fit_scorer(table, fit, aim, rng), margin=margin)
    progress("testing", 0.9)
    cuts = cuts_worth_testing(
        held_out.score(margin), table.losses[fit], aim.promise.epsilon, weights=table.weighing(fit)
    )
    looks = _looks(scorer, table, rest)
    cut = choose_cut(
        looks.score(margin), table.losses[rest], cuts, aim.promise, weights=table.weighing(rest)
    )
    route = Quality(scorer, aim.promise, cut)
    result = _report(route, table, fit, rest, looks)
    progress("done", 1.0)
    return result


def retest(
    route: Quality, rows: Sequence[Labelled], region: Region, *, embed: EmbedMany | None = None
) -> Quality:
    """The same gain models with a new cut, from fresh labels drawn where they matter.

    `region` bounds s₀ − margin (`first_look`), which is never above the score that is cut, so it
    holds all that a cut up to `region.top` keeps; `region.share` comes from unlabelled traffic.
    None of the rows may have fitted the models."""
    scorer = route.scorer
    table = _Table.of(rows, Aim(route.promise, scorer.hold_tokens), embed)
    _, one_each = np.unique(table.groups, return_index=True)
    scores = _looks(scorer, table, one_each).score(scorer.margin)
    cuts = [float(cut) for cut in np.linspace(region.top - CUT_RANGE, region.top, CUT_STEPS)]
    losses = table.losses[one_each]
    return replace(route, cut=choose_cut(scores, losses, cuts, route.promise, region))


def first_look(route: Quality, calls: Sequence[Call], *, embed: EmbedMany | None = None) -> Floats:
    """s₀ − margin of unlabelled traffic: what `Region.at_most` counts, and what a call is sampled
    by (`shadow.Sampling`)."""
    inputs: dict[str, NDArray[Any]] = {"before": np.array([before(call) for call in calls])}
    if embed is not None:
        inputs["embedding"] = embed(calls)
    margin = route.scorer.margin if route.scorer.judge else 0.0
    return scores_of(route.scorer.route.estimate_many(inputs)) - margin


@dataclass(frozen=True, slots=True)
class _Looks:
    """s₀ and s₁ of some rows; g₁ is None where nothing is judged."""

    first: Floats
    judged: Floats | None

    def score(self, margin: float) -> Floats:
        return self.first if self.judged is None else np.maximum(self.first - margin, self.judged)


@dataclass(frozen=True, slots=True)
class _Table:
    inputs: dict[str, NDArray[Any]]
    small: Floats
    large: Floats
    chars: Floats
    groups: NDArray[np.int64]
    tokens: Floats | None
    weights: Floats
    volunteered: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[Labelled], aim: Aim, embed: EmbedMany | None) -> _Table:
        inputs: dict[str, NDArray[Any]] = {"before": np.array([before(row.call) for row in rows])}
        if embed is not None:
            inputs["embedding"] = embed([row.call for row in rows])
        if all(row.answer is not None for row in rows):
            inputs["after"] = np.array([_after(row, aim.hold_tokens) for row in rows])
        return cls(
            inputs,
            np.array([row.small for row in rows]),
            np.array([row.large for row in rows]),
            np.array([float(len(question(row.call))) for row in rows]),
            np.array(groups_of(rows)),
            np.array([row.tokens for row in rows]) if all(row.tokens for row in rows) else None,
            np.array([row.weight for row in rows]),
            np.array([row.volunteered for row in rows]),
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

    def weighing(self, rows: NDArray[np.int64]) -> Floats | None:
        """None: all were drawn alike."""
        weights: Floats = self.weights[rows]
        return None if len(weights) == 0 or np.ptp(weights) == 0.0 else weights

    def lengths(self, rows: NDArray[np.int64]) -> Floats | None:
        return None if self.tokens is None else self.tokens[rows]

    def take(self, rows: NDArray[np.int64], judged: bool) -> dict[str, NDArray[Any]]:
        return {name: self.inputs[name][rows] for name in self.names(judged)}

    def plans(self, judged: bool) -> dict[str, Plan]:
        made = {"before": feature_plan(BEFORE), "after": answer_plan(AFTER)}
        if "embedding" in self.inputs:
            made["embedding"] = embedding_plan(self.inputs["embedding"].shape[1])
        return {name: made[name] for name in self.names(judged)}


def _after(row: Labelled, hold_tokens: int | None) -> Floats:
    assert row.answer is not None
    return after(question(row.call), first_tokens(row.answer, hold_tokens))


def _halves(
    groups: NDArray[np.int64], volunteered: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole conversations, half of them each. All rows of the first half may fit; of the second
    each conversation gives one, drawn at random, because the test needs independent labels. What
    was volunteered is in the first half, with its conversation."""
    told = np.unique(groups[volunteered])
    order = rng.permutation(np.setdiff1d(np.arange(int(groups.max()) + 1), told))
    first = np.isin(groups, told) | np.isin(groups, order[: len(order) // 2])
    others = rng.permutation(np.flatnonzero(~first))
    _, one_each = np.unique(groups[others], return_index=True)
    return np.flatnonzero(first), others[one_each]


def _out_of_fold(table: _Table, rows: NDArray[np.int64], rng: np.random.Generator) -> _Looks:
    def scores(judged: bool) -> Floats:
        estimates = out_of_fold(
            table.take(rows, judged),
            table.plans(judged),
            table.small[rows],
            table.large[rows],
            rng=rng,
            tokens=table.lengths(rows),
            groups=table.groups[rows],
        )
        return scores_of(estimates)

    return _Looks(scores(False), scores(True) if "after" in table.inputs else None)


def _fit_scorer(
    table: _Table, rows: NDArray[np.int64], aim: Aim, rng: np.random.Generator
) -> Scorer:
    def fit(judged: bool) -> GainModel:
        inputs, plans = table.take(rows, judged), table.plans(judged)
        embedder = aim.embedder if "embedding" in inputs else ""
        sides = (table.small[rows], table.large[rows])
        tokens = table.lengths(rows)
        return fit_gain(inputs, plans, *sides, rng=rng, tokens=tokens, embedder=embedder)

    judge = fit(True) if "after" in table.inputs else None
    return Scorer(fit(False), judge, aim.hold_tokens)


def _looks(scorer: Scorer, table: _Table, rows: NDArray[np.int64]) -> _Looks:
    def scores(model: GainModel, judged: bool) -> Floats:
        found = scores_of(model.estimate_many(table.take(rows, judged)))
        return np.where(blind, np.inf, found)

    blind = table.blind[rows]
    judged = scores(scorer.judge, True) if scorer.judge else None
    return _Looks(scores(scorer.route, False), judged)


def _best_margin(looks: _Looks, table: _Table, rows: NDArray[np.int64], aim: Aim) -> float:
    """The cheapest at which the loss looks like ε: trying small costs, and so does not trying."""
    if looks.judged is None:
        return 0.0

    def cost(margin: float) -> float:
        score, weights = looks.score(margin), table.weighing(rows)
        cut = plug_in_cut(score, table.losses[rows], aim.promise.epsilon, weights)
        tried = looks.first - margin <= cut
        return float(np.average((score > cut) + aim.price_ratio * tried, weights=weights))

    return min(MARGINS, key=cost)


def _report(
    route: Quality,
    table: _Table,
    fit: NDArray[np.int64],
    rest: NDArray[np.int64],
    looks: _Looks,
) -> Calibration:
    losses, weights = table.losses[rest], table.weights[rest] / table.weights[rest].mean()
    epsilon = route.promise.epsilon
    scores = {"prompt length": table.chars[rest], "router": looks.first}
    if looks.judged is not None:
        scores["router + judge"] = looks.score(route.scorer.margin)
    scores["oracle"] = losses + 1e-9 * np.arange(len(losses))  # may tell equals apart
    small, large = (
        float(np.average(side[rest], weights=weights)) for side in (table.small, table.large)
    )
    curves = [Curve("random", np.array([0.0, 1.0]), np.array([small, large]))]
    lines = [Line("random", _random_share(large - small, epsilon), 0.5)]
    for name, score in scores.items():
        curve = _curve(name, score, losses * weights, weights, small)
        curves.append(curve)
        over = score > plug_in_cut(score, losses, epsilon, weights)
        lines.append(Line(name, float(np.average(over, weights=weights)), _apgr(curve)))
    return Calibration(route, small, large, len(fit), tuple(curves), tuple(lines))


def _curve(name: str, score: Floats, losses: Floats, weights: Floats, small: float) -> Curve:
    """`losses` are weighed already; the weights' mean is 1."""
    order, count = np.argsort(-score, kind="stable"), len(losses)
    gained = np.concatenate(([0.0], np.cumsum(losses[order]))) / count
    share = np.concatenate(([0.0], np.cumsum(weights[order]))) / count
    return Curve(name, share, small + gained)


def _apgr(curve: Curve) -> float:
    low, high = float(curve.quality[0]), float(curve.quality[-1])
    if high <= low:
        return math.nan
    return float(np.trapezoid((curve.quality - low) / (high - low), curve.large_share))


def _random_share(gap: float, epsilon: float) -> float:
    return 0.0 if gap <= epsilon else 1.0 - epsilon / gap
