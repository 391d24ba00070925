"""The promise: "against always asking the large model, at most ε is lost, with confidence 1 − δ".

Problem. A cut picked on n labelled requests so that the loss on them is at most ε misses ε on the
traffic that follows about every second time: the smallest cut that looks good is the one whose
labels were lucky. Measured on MMLU: 38–52 % of draws, at every n from 200 to 4,000.

Choice. Learn then Test (Angelopoulos et al.): order the cuts from careful (everything to the large
model) to bold, test for each "its loss is above ε" at level δ, and stop at the first that cannot
be rejected. Going in a fixed order costs nothing for the number of cuts, and the loss need not grow
along the way (it does not: the small model is sometimes the one that is right).

The test decides what the promise costs. A request's loss is large − small where the cut keeps it
small and 0 elsewhere. With right-or-wrong labels that is −1, 0 or 1, so the sum of n of them has a
known distribution once the rate ψ of non-zero losses is known: its tail is computed exactly, at the
worst ψ within a confidence interval of error γ, and γ is added (Berger and Boos). This needs z ≈
1.3 standard errors at δ = .1, as a normal approximation does, but holds at every n. Graded labels,
real numbers in [0, 1], fall back to betting (Waudby-Smith and Ramdas): a gambler who bets against
"loss ≥ ε" and multiplies the stake by 1/δ has refuted it; z ≈ 2.1.

Labels that were not drawn alike (shadow runs ask more often where the cut is) carry a weight, the
inverse of the probability that they were drawn by. Over all traffic the mean loss is ε or more
exactly if over the drawn labels the mean of weight · (loss − ε) is 0 or more, and against that the
gambler bets as well: `weights` need not be known beyond a common factor.

Where requests are decided in several ways (an answer that nobody reads along is judged whole), each
way has its cut, and all have to keep the promise: then any mixture of them keeps it, as long as the
way says nothing about the question. The cuts climb together, one rung each, and stop at the first
rung where one of them cannot be rejected. That rung's hypothesis, "some way loses more than ε", is
a union, which is rejected at level δ when each of its parts is (intersection–union test, Berger
1982). δ / 2 for each of two ways costs as much at thousands of labels, and two points more of
large's tokens at 500 (graded tasks, ε = .02).

A request that no tested cut keeps small cannot lose anything, and needs no label. Where labels can
be asked for (shadow runs), they are asked for in that `Region` only, and n labels count for n /
share.

Rejected. Hoeffding–Bentkus on losses scaled to [0, 1] ignores that most losses are 0 and never
leaves always-large below some thousand labels (bench/cascade.py prints all three). Conformal risk
control needs a loss that grows with the cut, and controls only its mean over calibrations. The
normal approximation is not a promise at n = 200.

Price. Below log δ / log(1 − ε) labels no outcome can support the promise, and none is given. The
cuts must be fixed before these labels are seen: they come from the data that fitted the score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GAMMA = 1e-3
"""Share of δ's scale spent on not knowing ψ."""
PSI_STEPS = 5
BETS = 24
BEYOND = 1.25
"""Cuts are tested up to so many times the share that the plug-in cut keeps: a model that was fitted
on all of a half keeps more than those that its cuts were chosen by."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Lose at most `epsilon` (0.01 = one point of accuracy), with confidence 1 − `delta`."""

    epsilon: float
    delta: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon < 1.0:
            raise ValueError(
                f"epsilon must lie between 0 and 1, not {self.epsilon}: 0.01 is a point"
            )
        if not 2 * GAMMA < self.delta < 1.0:
            raise ValueError(f"delta must lie between {2 * GAMMA} and 1, not {self.delta}")

    @property
    def labels_needed(self) -> int:
        """With fewer labels even a spotless record cannot support the promise."""
        return math.ceil(math.log(self.delta - GAMMA) / math.log1p(-self.epsilon))


@dataclass(frozen=True, slots=True)
class Region:
    """Labels were drawn from the requests with score ≤ `top` only, `share` of all traffic.

    What is never kept small cannot lose anything and needs no label: asking where it matters makes
    n labels worth n / share. `share` comes from unlabelled traffic (`at_most` bounds it)."""

    top: float = math.inf
    share: float = 1.0

    @classmethod
    def at_most(cls, top: float, scores: Floats) -> Region:
        """From the scores of unlabelled traffic: `share` is an upper bound of confidence 1 − γ."""
        inside = int(np.count_nonzero(scores <= top))
        return cls(top, _rate_interval(inside, len(scores))[1])


EVERYTHING = Region()


@dataclass(frozen=True, slots=True)
class Cut:
    """Keep a request on the small model when its score is at most `threshold`.

    `promised` is False where the labels support nothing bolder than always-large; `threshold` is
    then −∞. `loss` and `large_share` are measured on the `labels` themselves, of all traffic.
    """

    threshold: float
    promised: bool
    labels: int
    p_value: float
    loss: float
    large_share: float


def choose_cut(
    scores: Floats,
    losses: Floats,
    thresholds: Sequence[float],
    promise: Promise,
    region: Region = EVERYTHING,
    *,
    weights: Floats | None = None,
) -> Cut:
    """Learn then Test. `scores` [n]; `losses` [n], large − small in [−1, 1], as if every request
    had been kept small; `thresholds` were chosen without looking at these labels. `weights` [n]:
    inverse probabilities of having been drawn; None: all were drawn alike."""
    way = Way(scores, thresholds)
    return choose_cuts((way,), losses, promise, region, weights=weights)[0]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of deciding: `scores` [n] of the labels, and the cuts to test, chosen without looking
    at these labels. Without any it keeps nothing."""

    scores: Floats
    cuts: Sequence[float]

    def rungs(self, count: int, top: float) -> list[float]:
        """`count` cuts, ascending, none above `top`."""
        cuts = sorted(cut for cut in self.cuts if cut <= top) or [-math.inf]
        return [cuts[math.ceil((rung + 1) * len(cuts) / count) - 1] for rung in range(count)]


def choose_cuts(
    ways: Sequence[Way],
    losses: Floats,
    promise: Promise,
    region: Region = EVERYTHING,
    *,
    weights: Floats | None = None,
) -> tuple[Cut, ...]:
    """Learn then Test for several ways of deciding at once: with confidence 1 − δ none of them
    loses more than ε. One cut per way, in order; the rest as in `choose_cut`."""
    best = tuple(Cut(-math.inf, False, len(losses), 1.0, 0.0, 1.0) for _ in ways)
    allowed = promise.epsilon / region.share
    if allowed < 1.0 and len(losses) < Promise(allowed, promise.delta).labels_needed:
        return best

    def test(scores: Floats, threshold: float) -> Cut:
        kept = scores <= threshold
        routed = np.where(kept, losses, 0.0)
        return Cut(
            float(threshold),
            threshold > -math.inf,
            len(losses),
            loss_p_value(routed, allowed, weights) if allowed < 1.0 else 0.0,
            region.share * float(np.average(routed, weights=weights)),
            1.0 - region.share * float(np.average(kept, weights=weights)),
        )

    count = max((len(way.cuts) for way in ways), default=0)
    for rung in zip(*(way.rungs(count, region.top) for way in ways), strict=True):
        tested = tuple(
            test(way.scores, threshold) for way, threshold in zip(ways, rung, strict=True)
        )
        if any(cut.p_value > promise.delta for cut in tested):
            break
        best = tested
    return best


def cuts_worth_testing(
    scores: Floats,
    losses: Floats,
    epsilon: float,
    steps: int = 120,
    weights: Floats | None = None,
) -> tuple[float, ...]:
    """Ascending cuts around where the loss should reach ε, from out-of-fold scores of the labels
    that fitted the model. The boldest is a little past that point: beyond it no label is needed."""
    order = np.sort(scores)
    boldest = plug_in_cut(scores, losses, epsilon, weights)
    share = float((scores <= boldest).mean()) if boldest > -math.inf else 0.0
    if share == 0.0:
        return ()
    shares = np.linspace(0.25 * share, min(1.0, BEYOND * share), steps)
    return tuple(sorted({float(order[max(0, math.ceil(s * len(order)) - 1)]) for s in shares}))


def plug_in_cut(
    scores: Floats, losses: Floats, epsilon: float, weights: Floats | None = None
) -> float:
    """What everybody does: the boldest cut whose measured loss is at most ε. No promise."""
    order = np.argsort(scores, kind="stable")
    ascending = scores[order]
    last_of_equals = np.append(ascending[1:] > ascending[:-1], True)
    if weights is None:
        running = np.cumsum(losses[order]) / len(scores)
    else:
        running = np.cumsum((weights * losses)[order]) / weights.sum()
    good = np.flatnonzero((running <= epsilon) & last_of_equals)
    return float(ascending[good[-1]]) if good.size else -math.inf


def loss_p_value(losses: Floats, epsilon: float, weights: Floats | None = None) -> float:
    """How probable it is to look this good if the true mean loss were ε or more.

    losses [n] in [−1, 1], independent. Valid at every n: P(p ≤ δ) ≤ δ under that hypothesis."""
    if weights is not None:
        return betting_p_value(losses, epsilon, weights)
    if np.all((losses == 0.0) | (np.abs(losses) == 1.0)):
        worse = int(np.count_nonzero(losses > 0))
        better = int(np.count_nonzero(losses < 0))
        return paired_p_value(worse, better, len(losses), epsilon)
    return betting_p_value(losses, epsilon)


def paired_p_value(worse: int, better: int, n: int, epsilon: float) -> float:
    """The exact test: of n requests `worse` lost a right answer and `better` gained one.

    Orders outcomes by the studentised distance (D − nε) / √(N + 1), with D = worse − better and
    N = worse + better: its tail hardly depends on ψ, so the worst ψ costs next to nothing."""
    distance = (worse - better - n * epsilon) / math.sqrt(worse + better + 1)
    low, high = _rate_interval(worse + better, n)
    if distance >= 0:
        return 1.0
    if high < epsilon:
        return GAMMA
    log_factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    rates = np.linspace(max(low, epsilon), high, PSI_STEPS)
    tails = [_tail(distance, n, float(psi), epsilon, log_factorials) for psi in rates]
    return min(1.0, max(tails) + GAMMA)


def _tail(distance: float, n: int, psi: float, epsilon: float, log_factorials: Floats) -> float:
    """P(outcome is at most `distance` away) when losses are non-zero at rate ψ with mean ε.

    N is binomial(n, ψ); given N, `worse` is binomial(N, θ) with θ = (1 + ε/ψ) / 2, and it must be
    at most (N + nε + distance·√(N + 1)) / 2. Both run over ± 9 standard deviations and a bit: less
    than 1e-15 is left out."""
    theta = min((1.0 + epsilon / psi) / 2, 1.0 - 1e-12)
    counts = _window(n * psi, math.sqrt(n * psi), n)
    most = (counts + n * epsilon + distance * np.sqrt(counts + 1.0)) / 2
    most = np.floor(most + 1e-9).astype(np.int64)
    spread = np.sqrt(counts * theta * (1.0 - theta))
    first = np.maximum(0, np.floor(counts * theta - 9 * spread - 9)).astype(np.int64)
    most = np.minimum(np.minimum(most, counts), np.ceil(counts * theta + 9 * spread + 9)).astype(
        int
    )
    width = int((most - first).max()) + 1
    if width <= 0:
        return 0.0
    worse = first[:, None] + np.arange(width)[None, :]
    inside = worse <= most[:, None]
    worse = np.where(inside, worse, 0)
    given = _log_binomial(worse, counts[:, None], theta, log_factorials)
    below = np.where(inside, np.exp(given), 0.0).sum(axis=1)
    weights = np.exp(_log_binomial(counts, np.array(n), psi, log_factorials))
    return float((weights * below).sum())


def _window(middle: float, spread: float, top: int) -> NDArray[np.int64]:
    low, high = math.floor(middle - 9 * spread - 9), math.ceil(middle + 9 * spread + 9)
    return np.arange(max(0, low), min(top, high) + 1)


def _log_binomial(
    hits: NDArray[np.int64], trials: NDArray[np.int64], rate: float, log_factorials: Floats
) -> Floats:
    ways = log_factorials[trials] - log_factorials[hits] - log_factorials[trials - hits]
    logs: Floats = ways + hits * math.log(rate) + (trials - hits) * math.log1p(-rate)
    return logs


def _rate_interval(hits: int, n: int) -> tuple[float, float]:
    """Where a rate lies with confidence 1 − γ: n·KL(hits/n ‖ rate) ≤ log(2/γ) (Chernoff)."""
    budget, seen = math.log(2 / GAMMA) / n, hits / n
    return _kl_edge(seen, 0.0, budget), _kl_edge(seen, 1.0, budget)


def _kl_edge(seen: float, end: float, budget: float) -> float:
    inside, outside = seen, end
    for _ in range(50):
        middle = (inside + outside) / 2
        if _kl(seen, middle) <= budget:
            inside = middle
        else:
            outside = middle
    return outside


def _kl(p: float, q: float) -> float:
    """Kullback–Leibler divergence of two coins, in nats."""
    if q <= 0.0 or q >= 1.0:
        return 0.0 if p == q else math.inf
    left = p * math.log(p / q) if p > 0 else 0.0
    right = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0
    return left + right


def betting_p_value(losses: Floats, epsilon: float, weights: Floats | None = None) -> float:
    """1 over the most that a fixed portfolio of bets against "mean loss ≥ ε" ever held.

    Bet j multiplies its stake by 1 + λ_j (ε − loss): a fair game or worse under the hypothesis, and
    never below zero as λ_j < 1 / (1 − ε). The portfolio starts with equal stakes; by Ville's
    inequality it reaches 1/δ with probability at most δ."""
    bets = np.geomspace(1e-3, 0.98, BETS) / (1.0 - epsilon)
    against = epsilon - losses if weights is None else (epsilon - losses) * weights / weights.max()
    stakes = np.cumsum(np.log1p(bets[:, None] * against[None, :]), axis=1)
    top = stakes.max()
    held = np.exp(stakes - top).mean(axis=0).max()
    return float(min(1.0, math.exp(-top) / held)) if held > 0 else 1.0
