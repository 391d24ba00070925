"""The rules of others, for comparison and for whoever wants them: static, vCache, pooled.

*Static* is what most gateways have: serve above a cosine. *VCache* (arXiv 2502.03771) is written
from its formulas: every kept question learns its own threshold from pairs (similarity, right), and
serves when the pessimistic probability of being right, over all confidence levels, beats a coin.
*Pooled* is a threshold for the whole namespace on the cosine with guards as a veto, raised and
lowered every 50 requests so that an asymptotic bound on the labelled wrong hits stays below the
target.

None of them is what we promise with: the first promises nothing, the second spends an eighth to a
third of its error budget because no question shares what it learnt with any other, and the third
overshoots while the cache fills.
"""

from __future__ import annotations

import math
import random
from collections import deque
from statistics import NormalDist
from typing import Literal

import numpy as np

from cache.verify import Floats, Sighting, Verdict


class Static:
    """Serve at or above a fixed cosine; `guards` adds the veto."""

    keeps_twins = True

    def __init__(self, threshold: float, *, guards: bool = False) -> None:
        self._threshold = threshold
        self._guards = guards

    def decide(self, sighting: Sighting) -> Verdict:
        vetoed = self._guards and sighting.guarded
        serves = sighting.similarity >= self._threshold and not vetoed
        reason = f"cosine {sighting.similarity:.3f}"
        return Verdict("serve" if serves else "forward", float("nan"), 1.0, reason)

    def learn(self, sighting: Sighting, verdict: Verdict, *, right: bool) -> None:
        """A fixed threshold learns nothing."""

    def skip(self) -> None:
        """Nor does it count."""

    def forget(self, key: int) -> None:
        """It knows of none."""

    def follow(self, max_error: float) -> None:
        """Nor does it promise."""


SEPARATED_VAR = ((6, 0.0354), (10, 0.0194), (20, 0.0131), (30, 0.0080), (40, 0.0052))
"""Variance of the threshold where the labels are perfectly separated, by number of labels."""

LEVELS = tuple((index + 0.5) / 50 for index in range(50))
LEVEL_Z = np.array([NormalDist().inv_cdf(1 - level) for level in LEVELS])
LEVEL = np.array(LEVELS)


def vcache_chance(pairs: list[tuple[float, bool]], similarity: float, max_error: float) -> float:
    """The probability with which vCache explores, given one entry's labelled pairs."""
    if len(pairs) < 6:
        return 1.0
    x = np.array([pair[0] for pair in pairs])
    y = np.array([pair[1] for pair in pairs], dtype=float)
    slope, threshold, variance = _sigmoid_fit(x, y)
    pessimistic = np.clip(threshold + LEVEL_Z * math.sqrt(variance), 0.0, 1.0)
    logits = np.clip(slope * (similarity - pessimistic), -50, 50)
    surely = (1 - LEVEL) / (1 + np.exp(-logits))
    return float(np.min((1 - max_error - surely) / (1 - surely)))


def _sigmoid_fit(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Slope, threshold and the threshold's variance of P(right | similarity)."""
    design = np.stack([np.ones_like(x), x], axis=1)
    beta = np.zeros(2)
    hessian = np.eye(2)
    for _ in range(40):  # Newton with a trace of ridge, which stands in for "until it converges"
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (p - y) + 1e-6 * beta)
        beta = beta - step
        if np.abs(step).max() < 1e-3:
            break
    slope = max(float(beta[1]), 1e-6)
    threshold = min(1.0, max(0.0, -float(beta[0]) / slope))
    if x[y == 0].max() < x[y == 1].min():
        variance = next(v for n, v in reversed(SEPARATED_VAR) if len(x) >= n)
        return slope, threshold, variance
    gradient = np.array([-1 / slope, float(beta[0]) / slope**2])
    return slope, threshold, float(gradient @ np.linalg.solve(hessian, gradient))


class VCache:
    """Per-entry thresholds with an error bound, from the formulas of arXiv 2502.03771."""

    keeps_twins = False

    def __init__(self, max_error: float, rng: random.Random) -> None:
        self._max_error = max_error
        self._rng = rng
        self._pairs: dict[int, list[tuple[float, bool]]] = {}

    def decide(self, sighting: Sighting) -> Verdict:
        pairs = self._pairs.get(sighting.key, [(0.0, False), (1.0, True)])
        chance = vcache_chance(pairs, round(sighting.similarity, 3), self._max_error)
        explores = self._rng.random() <= chance
        action: Literal["serve", "explore"] = "explore" if explores else "serve"
        return Verdict(action, 1 - self._max_error, max(0.0, chance), f"{len(pairs)} labels")

    def learn(self, sighting: Sighting, _verdict: Verdict, /, *, right: bool) -> None:
        pairs = self._pairs.setdefault(sighting.key, [(0.0, False), (1.0, True)])
        pairs.append((round(sighting.similarity, 3), right))

    def skip(self) -> None:
        """vCache counts per entry only."""

    def forget(self, key: int) -> None:
        self._pairs.pop(key, None)

    def follow(self, max_error: float) -> None:
        self._max_error = max_error


class Pooled:
    """One threshold per namespace on the cosine, guards as a veto, from 2,500 labelled requests."""

    keeps_twins = True

    def __init__(self, max_error: float, rng: random.Random, *, audit: float = 0.05) -> None:
        self._max_error = max_error
        self._rng = rng
        self._audit = audit
        self._window: deque[tuple[float, bool, float]] = deque(maxlen=2500)
        self._threshold = 2.0
        self._seen = 0

    def decide(self, sighting: Sighting) -> Verdict:
        self._count()
        score = self._score(sighting)
        if score < self._threshold:
            return Verdict("forward", float("nan"), 1.0, f"cosine {score:.3f}")
        audits = self._rng.random() < self._audit
        return Verdict("explore" if audits else "serve", float("nan"), self._audit, "pooled")

    def learn(self, sighting: Sighting, verdict: Verdict, *, right: bool) -> None:
        self._window.append((self._score(sighting), right, 1 / verdict.chance))

    def skip(self) -> None:
        self._count()
        self._window.append((-1.0, False, 1.0))

    def forget(self, key: int) -> None:
        """Its labels are of the namespace."""

    def follow(self, max_error: float) -> None:
        self._max_error = max_error

    def _count(self) -> None:
        self._seen += 1
        if self._seen % 50 == 0:
            self._threshold = pooled_threshold(list(self._window), self._max_error)

    @staticmethod
    def _score(sighting: Sighting) -> float:
        return -1.0 if sighting.guarded else sighting.similarity


def pooled_threshold(window: list[tuple[float, bool, float]], max_error: float) -> float:
    """The lowest score with mean wrong weight + 1.64 standard errors <= max_error; 2 if none."""
    if not window:
        return 2.0
    rows = np.array([(score, (not right) * weight, weight) for score, right, weight in window])
    rows = rows[np.argsort(-rows[:, 0], kind="stable")]
    total = rows[:, 2].sum()
    wrong = np.cumsum(rows[:, 1])
    spread = np.sqrt(np.cumsum(rows[:, 1] ** 2) + rows[:, 2].max())
    allowed = (wrong + 1.64 * spread <= max_error * total) & (rows[:, 0] > 0)
    # A threshold admits every row with its score, so only the last row of a tie may be chosen.
    allowed[:-1] &= rows[:-1, 0] > rows[1:, 0]
    admitted = np.flatnonzero(allowed)
    return float(rows[admitted[-1], 0]) if len(admitted) else 2.0
