"""From labelled requests to a policy with a promise: what `sluice calibrate` does.

    split by conversation ─▸ fit on one half ─▸ choose margin and cuts on its out-of-fold scores
                          └▸ test the cuts on the other half (promise.py) ─▸ policy, table, curves

The two halves never mix: the gain models, the margins and the cuts to test come from the first, the
promise from the second. Out-of-fold scores (each row scored by a model that has not seen its
conversation) are what the first half can say about itself without praise. Where answers may be
waited for to their end, two ways of judging are fitted and tested together (looks.py).

Routers do not transfer: one fitted on one kind of traffic does no better than a coin on another. So
the labels have to be the tenant's own, and where they are too few the result says how many it takes
instead of promising.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.features import before
from cascade.gain import Floats, scores_of
from cascade.labels import Labelled
from cascade.looks import EmbedMany, Looks, Rows, Table, View, fit_scorer, held_out_looks, looks_of
from cascade.promise import (
    Cut,
    Promise,
    Region,
    Way,
    choose_cuts,
    cuts_worth_testing,
    plug_in_cut,
)
from cascade.routes.learned import Quality, Whole
from engine.contract import Call

Progress = Callable[[str, float], None]
"""(step, share done 0 … 1)."""

LEAST_ROWS = 40
MARGINS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 10.0)
"""10 never skips the small model's attempt."""
EARLIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 10.0)
"""The same for giving up an answer by its first tokens, where all of it may be waited for."""
NO_CUT = Cut(-math.inf, False, 0, 1.0, 0.0, 1.0)
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
    whole_tokens: int = 512
    """How long an answer that nobody reads along is waited for; 0: it is judged like the others."""
    price_ratio: float = 0.1
    embedder: str = ""
    seed: int = 0

    @property
    def view(self) -> View:
        return View(self.hold_tokens, self.whole_tokens)


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
    tested_on: Rows
    """Which of the rows the promise was tested on."""

    def summary(self) -> str:
        """What it promises, on how many labels; or what it takes to promise."""
        promise, cut = self.route.promise, self.route.cut
        lost, sure = 100 * promise.epsilon, 100 * (1 - promise.delta)
        if cut.promised:
            shares = f"{cut.large_share:.0%} large calls"
            if self.route.whole:
                whole = self.route.whole.cut.large_share
                shares += f" where answers are streamed and {whole:.0%} where they are not"
            return (
                f"With {sure:.3g} % confidence at most {lost:.3g} points are lost against always "
                f"asking the large model, at {shares} "
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
    progress("features", 0.0)
    return calibrate_table(Table.of(rows, aim.view, embed), aim, progress)


def calibrate_table(table: Table, aim: Aim, progress: Progress = _unheard) -> Calibration:
    """The same for rows that are numbers already, made with `aim.view`."""
    rng = np.random.default_rng(aim.seed)
    fit, rest = _halves(table.groups, table.volunteered, rng)
    fit = fit[~table.blind[fit]]
    if len(fit) < LEAST_ROWS // 2:
        raise TooFewLabels(f"only {len(fit)} rows have a vector to fit on")
    if not len(rest):
        raise TooFewLabels(
            "nothing but feedback cannot test a promise; add labels that were drawn at random"
        )
    progress("fitting", 0.2)
    held_out = held_out_looks(table, fit, rng)
    plan = _plan(held_out, table, fit, aim)
    progress("fitting the last models", 0.7)
    scorer = fit_scorer(table, fit, rng, hold_tokens=aim.hold_tokens, embedder=aim.embedder)
    scorer = replace(scorer, margin=plan.margin)
    progress("testing", 0.9)
    looks = looks_of(scorer, table, rest)
    ways = [
        Way(scores, cuts_worth_testing(seen, table.losses[fit], aim.promise.epsilon,
                                       weights=table.weighing(fit)))
        for seen, scores in zip(
            ways_of(held_out, plan.margin, plan.whole),
            ways_of(looks, plan.margin, plan.whole),
            strict=True,
        )
    ]  # fmt: skip
    cuts = choose_cuts(ways, table.losses[rest], aim.promise, weights=table.weighing(rest))
    route = _with_cuts(Quality(scorer, aim.promise, NO_CUT, plan.whole), cuts)
    result = _report(route, table, fit, rest, looks)
    progress("done", 1.0)
    return result


def retest(
    route: Quality, rows: Sequence[Labelled], region: Region, *, embed: EmbedMany | None = None
) -> Quality:
    """The same gain models with a new cut, from fresh labels drawn where they matter.

    `region` bounds the `first_look`, which is never above a score that is cut, so it holds all that
    a cut up to `region.top` keeps; `region.share` comes from unlabelled traffic. None of the rows
    may have fitted the models. Two cuts move together, by the same step."""
    scorer = route.scorer
    table = Table.of(rows, View(scorer.hold_tokens, route.whole_tokens), embed)
    _, one_each = np.unique(table.groups, return_index=True)
    looks = looks_of(scorer, table, one_each)
    steps = np.linspace(-CUT_RANGE, 0.0, CUT_STEPS)
    apart = 0.0
    if route.whole and route.cut.promised:
        apart = route.whole.cut.threshold - route.cut.threshold
    scores = ways_of(looks, scorer.margin, route.whole)
    ways = [
        Way(score, (region.top + shift + steps).tolist())
        for score, shift in zip(scores, (0.0, apart), strict=False)
    ]
    cuts = choose_cuts(ways, table.losses[one_each], route.promise, region)
    return _with_cuts(route, cuts)


def first_look(route: Quality, calls: Sequence[Call], *, embed: EmbedMany | None = None) -> Floats:
    """s₀ less the wider margin, of unlabelled traffic: what `Region.at_most` counts, and what a
    call is sampled by (`shadow.Sampling`)."""
    inputs: dict[str, NDArray[Any]] = {"before": np.array([before(call) for call in calls])}
    if embed is not None:
        inputs["embedding"] = embed(calls)
    margin = route.scorer.margin if route.scorer.judge else 0.0
    margin = max(margin, route.whole.margin) if route.whole else margin
    return scores_of(route.scorer.route.estimate_many(inputs)) - margin


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is fixed before the test: margins, and whether whole answers are judged."""

    margin: float
    whole: Whole | None


def _halves(
    groups: Rows, volunteered: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Whole conversations, half of them each. All rows of the first half may fit; of the second
    each conversation gives one, drawn at random, because the test needs independent labels. What
    was volunteered is in the first half, with its conversation."""
    told = np.unique(groups[volunteered])
    order = rng.permutation(np.setdiff1d(np.arange(int(groups.max()) + 1), told))
    first = np.isin(groups, told) | np.isin(groups, order[: len(order) // 2])
    others = rng.permutation(np.flatnonzero(~first))
    _, one_each = np.unique(groups[others], return_index=True)
    return np.flatnonzero(first), others[one_each]


def _plan(looks: Looks, table: Table, rows: Rows, aim: Aim) -> _Plan:
    """The margins that are cheapest where the loss looks like ε: trying small costs, and so does
    not trying."""
    if looks.judged is None:
        return _Plan(0.0, None)
    losses, weights = table.losses[rows], table.weighing(rows)

    def cost(score: Floats, margin: float, spent: Callable[[float], Floats]) -> float:
        cut = plug_in_cut(score, losses, aim.promise.epsilon, weights)
        tried = looks.first - margin <= cut
        paid = aim.price_ratio * tried * spent(cut)
        return float(np.average((score > cut) + paid, weights=weights))

    margin = min(MARGINS, key=lambda m: cost(looks.score(m), m, lambda _: np.ones(len(rows))))
    if looks.whole is None:
        return _Plan(margin, None)
    judged, held = looks.judged, float(aim.hold_tokens or 0)
    said = np.minimum(table.said[rows], aim.whole_tokens)

    def spent(early: float, cut: float) -> Floats:
        """Of small's answer, as a share of the mean one."""
        given_up = looks.going & (judged - early > cut)
        made: Floats = np.where(given_up, held, said) / said.mean()
        return made

    waits = min(
        itertools.product(MARGINS, EARLIES),
        key=lambda two: cost(looks.whole_score(*two), two[0], lambda cut: spent(two[1], cut)),
    )
    return _Plan(margin, Whole(aim.whole_tokens, *waits, NO_CUT))


def ways_of(looks: Looks, margin: float, whole: Whole | None) -> list[Floats]:
    """The scores that are cut: of the first tokens and, where they are waited for, of whole
    answers."""
    scores = [looks.score(margin)]
    if whole is not None:
        scores.append(looks.whole_score(whole.margin, whole.early))
    return scores


def _with_cuts(route: Quality, cuts: Sequence[Cut]) -> Quality:
    whole = replace(route.whole, cut=cuts[1]) if route.whole else None
    return replace(route, cut=cuts[0], whole=whole)


def _report(
    route: Quality,
    table: Table,
    fit: Rows,
    rest: Rows,
    looks: Looks,
) -> Calibration:
    losses, weights = table.losses[rest], table.weights[rest] / table.weights[rest].mean()
    epsilon = route.promise.epsilon
    scores = {"prompt length": table.chars[rest], "router": looks.first}
    if looks.judged is not None:
        ways = ways_of(looks, route.scorer.margin, route.whole)
        scores |= dict(zip(("router + judge", "router + judge, whole answers"), ways, strict=False))
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
    return Calibration(route, small, large, len(fit), tuple(curves), tuple(lines), rest)


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
