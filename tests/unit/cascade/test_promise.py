"""The exact test against brute force and simulation, and Learn then Test on top of it."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest

from cascade.promise import (
    GAMMA,
    Floats,
    Promise,
    Region,
    Way,
    betting_p_value,
    choose_cut,
    choose_cuts,
    cuts_worth_testing,
    loss_p_value,
    paired_p_value,
    plug_in_cut,
)


def brute_p_value(worse: int, better: int, n: int, epsilon: float) -> float:
    """The largest tail over a fine grid of ψ in [ε, 1], by adding up the whole trinomial."""

    def distance(a: int, b: int) -> float:
        return (a - b - n * epsilon) / math.sqrt(a + b + 1)

    seen = distance(worse, better) + 1e-9
    cells = [(a, b) for a in range(n + 1) for b in range(n + 1 - a) if distance(a, b) <= seen]
    tails = []
    for psi in np.linspace(epsilon, 0.999, 300):
        up, down = (psi + epsilon) / 2, (psi - epsilon) / 2
        tails.append(
            sum(
                comb(n, a) * comb(n - a, b) * up**a * down**b * (1 - psi) ** (n - a - b)
                for a, b in cells
            )
        )
    return max(tails)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (1, 0), (2, 1), (3, 4), (0, 3), (5, 5)])
def test_the_p_value_is_the_worst_exact_tail_where_the_rate_is_plausible(
    worse: int, better: int
) -> None:
    n, epsilon = 30, 0.2
    brute = brute_p_value(worse, better, n, epsilon)
    assert paired_p_value(worse, better, n, epsilon) <= brute + GAMMA + 1e-9
    assert paired_p_value(worse, better, n, epsilon) >= 0.5 * brute


@pytest.mark.parametrize(("n", "psi"), [(120, 0.05), (120, 0.3), (500, 0.1), (500, 0.4)])
def test_a_false_promise_passes_at_most_delta_of_the_time(n: int, psi: float) -> None:
    epsilon, delta, runs = 0.04, 0.1, 1500
    chances = [(psi + epsilon) / 2, (psi - epsilon) / 2, 1 - psi]
    drawn = np.random.default_rng(n).multinomial(n, chances, size=runs)
    passed = [paired_p_value(int(a), int(b), n, epsilon) <= delta for a, b, _ in drawn]
    assert np.mean(passed) <= delta + 3 * math.sqrt(delta * (1 - delta) / runs)


def test_the_test_is_nearly_as_strong_as_a_normal_approximation() -> None:
    """1.45 standard errors below ε are enough at δ = .1 (1.28 with the rate known)."""
    n, rate, epsilon = 2000, 0.1, 0.025
    sigma = math.sqrt(rate / n)
    difference = round(n * (epsilon - 1.45 * sigma))
    worse = (int(n * rate) + difference) // 2
    assert paired_p_value(worse, worse - difference, n, epsilon) <= 0.1


def test_betting_holds_for_graded_losses() -> None:
    rng = np.random.default_rng(3)
    passed = []
    for _ in range(400):
        losses = rng.beta(0.5, 2.0, 150) * 0.5  # mean 0.1
        passed.append(betting_p_value(losses, 0.1) <= 0.1)
    assert np.mean(passed) <= 0.1 + 3 * math.sqrt(0.09 / 400)


def test_betting_rejects_a_loss_that_is_clearly_small() -> None:
    assert betting_p_value(np.full(400, 0.01), 0.05) < 0.01
    assert betting_p_value(np.full(400, 0.2), 0.05) == 1.0


def test_graded_labels_are_tested_by_betting() -> None:
    losses = np.full(300, 0.25)
    assert loss_p_value(losses, 0.5) == betting_p_value(losses, 0.5)


def test_too_few_labels_promise_nothing() -> None:
    promise = Promise(0.02, 0.1)
    n = promise.labels_needed - 1
    cut = choose_cut(np.zeros(n), np.zeros(n), [1.0], promise)
    assert not cut.promised
    assert cut.threshold == -math.inf
    assert cut.large_share == 1.0


def test_a_spotless_record_of_just_enough_labels_is_promised() -> None:
    promise = Promise(0.02, 0.1)
    n = promise.labels_needed
    cut = choose_cut(np.zeros(n), np.zeros(n), [1.0], promise)
    assert cut.promised
    assert cut.large_share == 0.0


def test_the_walk_stops_at_the_first_cut_that_is_not_safe() -> None:
    """Even where a bolder one would look safe by itself."""
    scores = np.repeat([0.0, 1.0, 2.0], 400)
    losses = np.concatenate([np.zeros(400), np.ones(400), -np.ones(400)])
    cut = choose_cut(scores, losses, [0.5, 1.5, 2.5], Promise(0.05))
    assert cut.threshold == 0.5


def test_over_many_draws_the_promise_is_missed_at_most_delta_and_the_plug_in_far_more() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    losses = (rng.random(20_000) < 0.4 * scores).astype(float)
    epsilon, missed, plugged, runs = 0.03, 0, 0, 150
    cuts = np.linspace(0.1, 0.6, 40)
    for _ in range(runs):
        rows = rng.integers(0, len(scores), 400)
        cut = choose_cut(scores[rows], losses[rows], list(cuts), Promise(epsilon))
        missed += np.where(scores <= cut.threshold, losses, 0).mean() > epsilon
        loose = plug_in_cut(scores[rows], losses[rows], epsilon)
        plugged += np.where(scores <= loose, losses, 0).mean() > epsilon
    assert missed / runs <= 0.1 + 3 * math.sqrt(0.09 / runs)
    assert plugged / runs > 0.25


def test_labels_from_the_region_reach_further_than_as_many_from_everywhere() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(20_000)
    losses = (rng.random(20_000) < 0.4 * scores).astype(float)
    promise, cuts = Promise(0.03), [float(c) for c in np.linspace(0.1, 0.45, 40)]
    inside = np.flatnonzero(scores <= 0.45)
    region = Region.at_most(0.45, scores)
    kept_everywhere, kept_there, missed = [], [], 0
    for _ in range(60):
        rows = rng.integers(0, len(scores), 300)
        cut = choose_cut(scores[rows], losses[rows], cuts, promise)
        kept_everywhere.append((scores <= cut.threshold).mean())
        rows = inside[rng.integers(0, len(inside), 300)]
        cut = choose_cut(scores[rows], losses[rows], cuts, promise, region)
        kept_there.append((scores <= cut.threshold).mean())
        missed += np.where(scores <= cut.threshold, losses, 0).mean() > promise.epsilon
    assert np.mean(kept_there) > np.mean(kept_everywhere) + 0.02
    assert missed <= 60 * (0.1 + 3 * math.sqrt(0.09 / 60))


def test_the_regions_share_is_an_upper_bound() -> None:
    scores = np.random.default_rng(0).random(1000)
    share = Region.at_most(0.5, scores).share
    assert (scores <= 0.5).mean() < share < 0.6


def test_cuts_worth_testing_surround_the_point_where_the_loss_reaches_epsilon() -> None:
    scores = np.linspace(0, 1, 1000)
    losses = (np.arange(1000) % 10 == 0).astype(float)
    cuts = cuts_worth_testing(scores, losses, 0.05)
    assert list(cuts) == sorted(cuts)
    assert cuts[0] < 0.2 < 0.5 < cuts[-1] < 0.65


def test_equal_scores_are_kept_or_sent_together() -> None:
    """Half of the second group would still be within ε, but there is no cut through it."""
    scores = np.repeat([0.0, 1.0], 100)
    losses = np.concatenate([np.zeros(100), np.tile([0.0, 1.0], 50)])
    assert plug_in_cut(scores, losses, 0.1) == 0.0


def test_where_small_loses_everywhere_no_cut_is_worth_testing() -> None:
    assert cuts_worth_testing(np.arange(10.0), np.ones(10), 0.01) == ()


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.1), (1.0, 0.1), (0.01, 0.0), (0.01, 1.0)])
def test_a_promise_that_means_nothing_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        Promise(epsilon, delta)


def drawn_unevenly(rng: np.random.Generator, n: int, loss: float) -> tuple[Floats, Floats]:
    """(losses, weights) of n labels whose mean loss over all traffic is `loss`. Half of the traffic
    never loses and is drawn five times as often, so that unweighed the labels flatter."""
    weights = []
    losses = []
    while len(weights) < n:
        safe = rng.random() < 0.5
        if rng.random() < (1.0 if safe else 0.2):
            weights.append(1.0 if safe else 5.0)
            losses.append(0.0 if safe else float(rng.random() < 2 * loss))
    return np.array(losses), np.array(weights)


def test_labels_that_were_drawn_unevenly_keep_the_promise_when_they_are_weighed() -> None:
    rng, epsilon, delta = np.random.default_rng(5), 0.05, 0.1
    draws = [drawn_unevenly(rng, 400, epsilon) for _ in range(300)]
    weighed = np.mean([loss_p_value(losses, epsilon, w) <= delta for losses, w in draws])
    unweighed = np.mean([loss_p_value(losses, epsilon) <= delta for losses, _ in draws])
    assert weighed <= delta + 0.05
    assert unweighed > 0.9, "or the test would not tell them apart"


def test_weighed_labels_promise_what_is_true_with_enough_of_them() -> None:
    losses, weights = drawn_unevenly(np.random.default_rng(6), 4000, 0.01)
    assert loss_p_value(losses, 0.05, weights) < 0.01
    cut = choose_cut(np.zeros(4000), losses, [0.5], Promise(0.05), weights=weights)
    assert cut.promised
    assert cut.loss == pytest.approx(0.01, abs=0.006)


def test_equal_weights_weigh_nothing_in_the_bets() -> None:
    losses = np.random.default_rng(7).uniform(-0.2, 0.2, 200)
    assert betting_p_value(losses, 0.1, np.full(200, 3.0)) == pytest.approx(
        betting_p_value(losses, 0.1)
    )


# ------------------------------------------------------------------ several ways at once


def ways_and_losses(n: int, seed: int) -> tuple[list[Floats], Floats]:
    """Two scores of the same requests, of unequal sharpness; a request's loss is its difficulty."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    losses = (rng.random(n) < 0.3 * hard).astype(np.float64)
    return [hard + rng.normal(0, blur, n) for blur in (0.4, 0.1)], losses


def test_several_ways_keep_their_promise_at_once() -> None:
    """Of 200 calibrations at most δ and noise miss by either way: 10 % + 3 × 2.1 %."""
    promise, cuts = Promise(0.05, 0.1), np.linspace(-0.4, 1.2, 80).tolist()
    people, losses = ways_and_losses(40_000, 0)
    missed = 0
    for seed in range(200):
        rows = np.random.default_rng(seed).integers(0, len(losses), 400)
        ways = [Way(scores[rows], cuts) for scores in people]
        found = choose_cuts(ways, losses[rows], promise)
        true = [
            (losses * (scores <= cut.threshold)).mean()
            for scores, cut in zip(people, found, strict=True)
        ]
        missed += max(true) > promise.epsilon
    assert missed / 200 <= 0.165


def test_one_way_is_tested_as_it_is_alone_and_one_that_keeps_nothing_stops_no_other() -> None:
    (_, sharp), losses = ways_and_losses(2000, 1)
    cuts = np.linspace(0.0, 1.0, 40).tolist()
    alone = choose_cut(sharp, losses, cuts, Promise(0.05))
    assert alone.promised
    both = choose_cuts([Way(sharp, []), Way(sharp, cuts)], losses, Promise(0.05))
    assert both[1] == alone
    assert (both[0].promised, both[0].threshold) == (False, -math.inf)


def test_the_ways_climb_together() -> None:
    """The blurred way cannot go far, and holds the sharp one back."""
    (blurred, sharp), losses = ways_and_losses(4000, 2)
    cuts = np.linspace(-0.4, 1.2, 80).tolist()
    alone = choose_cut(sharp, losses, cuts, Promise(0.05))
    found = choose_cuts([Way(blurred, cuts), Way(sharp, cuts)], losses, Promise(0.05))
    assert found[0].threshold == found[1].threshold < alone.threshold
