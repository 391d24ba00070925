"""Is the promise kept, and what does it cost? The part of bench/cascade.py about cuts.

Some questions fit the gain model; all others are the population, whose loss and share of large
calls at any cut are known. A calibration draws n labelled requests from it, with replacement, so
that they are independent as in live traffic and the truth is exact. A promise is missed when the
cut's true loss exceeds ε. Costs are points of large calls above the plug-in cut's, found on n
random labels (what everybody does: by gain, without the caution that ours scores with).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.cascade_scores import PLANS, Rows, Table, fit_ours
from cascade.fit import out_of_fold
from cascade.gain import scores_of
from cascade.promise import (
    EVERYTHING,
    Promise,
    Region,
    betting_p_value,
    choose_cut,
    cuts_worth_testing,
    plug_in_cut,
)

Floats = NDArray[np.float64]
Kept = NDArray[np.bool_]
NAMES = ("embedding", "before")


@dataclass(frozen=True, slots=True)
class Population:
    """Gains (what a plug-in cut is found on), scores (what ours cuts) and losses of all questions
    that did not fit the model, and the cuts to test, chosen on those that did."""

    gains: Floats
    scores: Floats
    losses: Floats
    cuts: Sequence[float]

    def truth(self, kept: Kept) -> tuple[float, float]:
        """(loss, share of large calls) of what is kept small."""
        return float((self.losses * kept).mean()), 1.0 - float(kept.mean())


@dataclass(frozen=True, slots=True)
class Outcome:
    missed: float
    large_share: float


def population(table: Table, fit: Rows, rest: Rows, epsilon: float, seed: int) -> Population:
    """`cuts` come from the fitting half's out-of-fold scores."""
    rng = np.random.default_rng(seed)
    model = fit_ours(table, fit, NAMES, rng)
    sides = (table.graded.small[fit], table.graded.large[fit])
    plans = {name: PLANS[name] for name in NAMES}
    held_out = out_of_fold(table.inputs(fit, NAMES), plans, *sides, rng=rng)
    cuts = cuts_worth_testing(scores_of(held_out), table.gain[fit], epsilon)
    estimates = model.estimate_many(table.inputs(rest, NAMES))
    gains = estimates[:, 1] - estimates[:, 0]
    return Population(gains, scores_of(estimates), table.gain[rest], cuts)


Draw = Callable[[Population, int, Promise, np.random.Generator], Kept]
"""Draws n labels, finds a cut, and says what of the whole population it keeps small."""


def plug_in(people: Population, n: int, promise: Promise, rng: np.random.Generator) -> Kept:
    rows = rng.integers(0, len(people.gains), n)
    return people.gains <= plug_in_cut(people.gains[rows], people.losses[rows], promise.epsilon)


def promised(people: Population, n: int, promise: Promise, rng: np.random.Generator) -> Kept:
    """Labels drawn from all traffic."""
    rows = rng.integers(0, len(people.scores), n)
    cut = choose_cut(people.scores[rows], people.losses[rows], people.cuts, promise, EVERYTHING)
    return people.scores <= cut.threshold


def _where_it_matters(people: Population, n: int, rng: np.random.Generator) -> tuple[Rows, Region]:
    """n labels drawn from the requests that a tested cut may keep small."""
    top = max(people.cuts)
    inside = np.flatnonzero(people.scores <= top)
    rows = inside[rng.integers(0, len(inside), n)]
    return rows, Region(top, len(inside) / len(people.scores))


def promised_where_it_matters(
    people: Population, n: int, promise: Promise, rng: np.random.Generator
) -> Kept:
    rows, region = _where_it_matters(people, n, rng)
    cut = choose_cut(people.scores[rows], people.losses[rows], people.cuts, promise, region)
    return people.scores <= cut.threshold


def plug_in_where_it_matters(
    people: Population, n: int, promise: Promise, rng: np.random.Generator
) -> Kept:
    rows, region = _where_it_matters(people, n, rng)
    allowed = promise.epsilon / region.share
    return people.scores <= plug_in_cut(people.scores[rows], people.losses[rows], allowed)


def _other_test(p_value: Callable[[Floats, float], float]) -> Draw:
    """Labels from all traffic, with another test than ours."""

    def draw(people: Population, n: int, promise: Promise, rng: np.random.Generator) -> Kept:
        rows = rng.integers(0, len(people.scores), n)
        scores, losses = people.scores[rows], people.losses[rows]
        best = -math.inf
        for threshold in people.cuts:
            if p_value(np.where(scores <= threshold, losses, 0.0), promise.epsilon) > promise.delta:
                break
            best = threshold
        return people.scores <= best

    return draw


def hoeffding_bentkus(losses: Floats, epsilon: float) -> float:
    """On losses scaled to [0, 1] (Bates et al.): the smaller of Hoeffding's and Bentkus' bounds."""
    n, mean, level = len(losses), float((losses.mean() + 1) / 2), (epsilon + 1) / 2
    if mean >= level:
        return 1.0
    kl = mean * math.log(mean / level) if mean else 0.0
    kl += (1 - mean) * math.log((1 - mean) / (1 - level))
    k = math.ceil(n * mean)
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    i = np.arange(k + 1)
    pmf = logs[n] - logs[i] - logs[n - i] + i * math.log(level) + (n - i) * math.log1p(-level)
    return min(math.exp(-n * kl), math.e * float(np.exp(pmf).sum()))


WAYS: dict[str, Draw] = {
    "plug-in": plug_in,
    "plug-in, labels where they matter": plug_in_where_it_matters,
    "promise, random labels": promised,
    "promise, labels where they matter": promised_where_it_matters,
    "  the same by betting, random labels": _other_test(betting_p_value),
    "  the same by Hoeffding–Bentkus": _other_test(hoeffding_bentkus),
}


def run_way(
    draw: Draw, people: Sequence[Population], n: int, promise: Promise, runs: int
) -> Outcome:
    """`runs` calibrations, spread over the splits."""
    truths = []
    for run in range(runs):
        split = people[run % len(people)]
        truths.append(split.truth(draw(split, n, promise, np.random.default_rng(run))))
    losses, shares = np.array(truths).T
    return Outcome(float((losses > promise.epsilon).mean()), float(shares.mean()))
