"""How likely is a possible hit wrong? A small logistic model per namespace.

Two dozen signs of a sighting go in, a probability comes out. It is refitted from scratch on the
recent labels (Newton, a few steps from the last weights), which costs about a millisecond per
thousand labels and never drifts as a stochastic update would. Ridge pulls the weights towards a
prior, which is what other namespaces have learnt: a new namespace starts with their idea of what
another number or a split neighbourhood means, and its own labels overrule it.

Rejected: trees and pairwise networks (no better with the few thousand labels that a namespace has,
much worse when moved to other traffic); token-level weights (+1 point of hits for a table of every
word a user ever typed).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cache.verify import SIGNS, Floats

RIDGE = 0.5

STEPS = 5

DEFAULT = dict.fromkeys(SIGNS, 0.0) | {
    "one": 1.0, "above .8": -1.0, "above .9": -1.0, "vote": -2.0, "margin": -1.0, "share": -2.0,
    "number": 1.5, "negation": 0.5, "antonym": 1.0, "names": 1.0, "name": 0.5, "jaccard": 1.0,
    "proven": -0.5, "refuted": 0.5,
}  # fmt: skip
"""What we believe before any label: signs only, rounded; a few hundred labels outweigh it."""


def default_prior() -> Floats:
    return np.array([DEFAULT[sign] for sign in SIGNS])


def shared_prior(learnt: Sequence[Floats]) -> Floats:
    """What to believe of a new namespace: what its siblings have learnt, and our own idea as one
    more of them."""
    mean: Floats = np.mean(np.stack([default_prior(), *learnt]), axis=0)
    return mean


class Odds:
    """P(wrong | signs). Owned by one namespace's policy."""

    def __init__(self, prior: Floats) -> None:
        self.prior = prior
        self.weights = prior.copy()

    def wrong(self, signs: Floats) -> float:
        logit = float(self.weights @ signs)
        return float(1 / (1 + np.exp(-max(-30.0, min(30.0, logit)))))

    def fit(self, signs: Floats, wrong: Floats, weight: Floats) -> None:
        """Rows of signs (n, len(SIGNS)), 0/1 labels (n,), weights (n,)."""
        weights, loss = self.weights, self._loss(self.weights, signs, wrong, weight)
        for _ in range(STEPS):
            step = self._step(weights, signs, wrong, weight)
            tried = weights - step
            after = self._loss(tried, signs, wrong, weight)
            while after > loss and np.abs(step).max() > 1e-3:  # Newton overshoots on clean labels
                step = step / 4
                tried = weights - step
                after = self._loss(tried, signs, wrong, weight)
            if after >= loss:
                break
            weights, loss = tried, after
        self.weights = weights

    def _step(self, weights: Floats, signs: Floats, wrong: Floats, weight: Floats) -> Floats:
        p = 1 / (1 + np.exp(-np.clip(signs @ weights, -30, 30)))
        curvature = weight * p * (1 - p)
        hessian = (signs * curvature[:, None]).T @ signs + RIDGE * np.eye(len(weights))
        gradient = signs.T @ (weight * (p - wrong)) + RIDGE * (weights - self.prior)
        step: Floats = np.linalg.solve(hessian, gradient).astype(np.float64)
        return step

    def _loss(self, weights: Floats, signs: Floats, wrong: Floats, weight: Floats) -> float:
        logits = signs @ weights
        likelihood = weight @ (np.logaddexp(0.0, logits) - wrong * logits)
        pull = weights - self.prior
        return float(likelihood + RIDGE / 2 * (pull @ pull))
