"""The promise: wrong hits stay below `max_error` of all requests, and what it costs to keep it.

Problem. Serve as many hits as possible while, of all requests of a namespace, no more than
`max_error` get a wrong cached answer: over its whole life and over any 2,000 requests in a row.
Nobody says which served hits are wrong; traffic changes; the cache itself changes what a cosine
means while it fills.

Choice. Four parts, each doing what it can prove.

1. *Odds* (cache/verify_model.py) turn a sighting into p, the probability of a wrong hit. Serving
   in order of p is the best that anyone can do with a budget of errors. Every request that the
   model answers labels its nearest neighbour for free, so a new namespace learns by just missing.
2. *The threshold*: the largest p that may be served. For each candidate the odds predict a mass of
   wrong hits over the last requests; the labels say by what factor the odds were off below it (a
   Gamma posterior: wrong ones seen over wrong ones predicted, one of each believed beforehand). The
   number of wrong hits in the next `horizon` requests is Poisson at a rate known so well, and the
   threshold is the largest at which a high percentile of them is below `max_error * horizon`. The
   noise of few labels and the noise of the future itself are thereby both paid from the budget,
   which is why a small promise costs more: ten wrong hits in 2,000 leave room for a mean of four.
   A label says the same whether it came from an audit or from a miss, given p: that is what keeps
   weights of 1/chance, and their noise, out of the estimate.
3. *Audits*: a possible hit is answered by the model instead with a chance between `floor` and
   `ceiling` that grows with the square root of p (Neyman: look where wrong hits are). No more than
   `ceiling` of the possible hits are spent on this in the long run, as a rule a tenth to a sixth.
4. *The alarm*: a CUSUM on the labels near the threshold against odds off by 2, 6 or 20.
   When it rings, everything learnt before the change is forgotten, serving stops, and the namespace
   starts again from the shared prior. A false ring costs a few hundred hits.

Beside them the *ledger* (cache/verify_ledger.py) bounds what audits alone prove, on any traffic,
and closes the namespace when even its patience, `BRAKE` blind spots above the budget, is used up.
An audit that ends without a label counts there as if it had caught a wrong hit.
So two statements hold, each with probability 95 %. On traffic whose next 2,000 requests resemble
the last 4,000: wrong hits <= max_error * 2,000 in them. On any traffic whatever, attackers
included: wrong hits <= max_error * t + a constant, for all t. Both are as true as the labels
(cache/agree.py): what compares answers must not call a wrong one right.

Measured (bench/semantic.py, 100 seeds): at .02 it serves 58 % of the advising stream and 40 % of
banking77, where a learned cosine threshold with guards serves 31 and 32 and vCache 7 and 16. Every
whole stream kept the promise, and in 96 % of seeds or more so did the worst 2,000 requests running,
at every max_error from .005 to .05, near-duplicates and a turn to hostile traffic included (40
seeds). Of the budget it spends a fifth to a third: that is the price of few labels. What it cannot
hold is a sudden change of many *right* answers: no audit has seen it yet, and it takes about three
caught ones, some 60 served wrong ones, until the alarm rings.

Rejected. Inverse-propensity sums, alone or doubly robust: one wrong audit at chance 1/20 counts 20,
more than the whole budget of 2,000 requests at .005. Thresholds with conformal feedback (raise when
fine, lower when not): right in the long run, but the error of any 2,000 requests swings by the
square root of the step. Betting on the served error alone: needs 60/max_error requests before the
first hit. Per-entry thresholds: no entry lives to see enough labels. Conditions on the cosine
drawn in buckets: the odds with the neighbourhood's vote make them redundant.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import msgspec
import numpy as np

from cache.verify import SIGNS, Floats, Sighting, Verdict
from cache.verify_alarm import Alarm
from cache.verify_ledger import Ledger
from cache.verify_model import Odds, default_prior
from cache.verify_percentiles import gamma_upper, poisson_upper
from cache.verify_state import Allowance, Since, State
from cache.verify_window import WINDOW, Ring

REFIT_EVERY: Final = 50

LEVELS: Final = np.geomspace(2e-4, 0.4, 60)
"""Candidate thresholds on p."""

MIN_EVIDENCE: Final = 200
"""Labels before the first hit."""

BRAKE: Final = 4
COSINE: Final = SIGNS.index("cosine")
DOUBT: Final = 2.0  # wrong audits believed beforehand to be as many as the odds say

SUPPORT: Final = 5
"""Labels as far from their question, or further, without which the odds are not believed: where
all labels were right and near, they take a question about something else to be right as well."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is promised, and what may be spent on keeping it. `z_*` are normal quantiles."""

    max_error: float
    horizon: int = 2000
    """Requests in a row over which the promise holds."""
    z_rate: float = 1.28
    """How sure of the rate of wrong hits (1.28: 90 %), given few labels."""
    z_count: float = 2.33
    """How sure that at this rate the next `horizon` requests fit into the budget (2.33: 99 %)."""
    floor: float = 0.04
    ceiling: float = 0.35
    """Least and most chance of an audit."""
    min_evidence: int = MIN_EVIDENCE


_Rows: TypeAlias = tuple[int, bytes]
_reader = msgspec.msgpack.Decoder(
    tuple[
        tuple[str, ...],
        tuple[int, int, float, int, int],
        tuple[_Rows, _Rows],
        list[float],
        tuple[int, int, float, list[float], list[float]],
        tuple[float, float, int],
    ]
)


class Budgeted:
    """The policy of one namespace. Owns everything that it has learnt."""

    keeps_twins = True

    def __init__(self, terms: Terms, rng: random.Random, prior: Floats | None = None) -> None:
        self.terms = terms
        self._rng = rng
        self.odds = Odds(default_prior() if prior is None else prior)
        self.ledger = Ledger(terms.floor)
        self._blind = self.ledger.at_most()
        self._allowance = Allowance(terms.max_error)
        self._alarm = Alarm()
        self._asked = Ring(2)  # request number, p
        self._labelled = Ring(4 + len(SIGNS))  # request number, p, wrong, weight, signs
        self._upper = np.full(len(LEVELS), np.inf)
        self._ratio = self._honesty = 1.0
        self._nearest = 0.0
        self._farthest = -math.inf
        """The sign `cosine` down to which there are labels enough."""
        self._since = 0
        self._requests = self._served = self._alarms = 0
        self._expected = 0.0
        self._untold: list[float] = []
        self._untold_served, self._untold_expected = 0, 0.0
        self.threshold = 0.0
        self.reason = "warming up"

    # ------------------------------------------------------------------ the decision

    def decide(self, sighting: Sighting, max_error: float | None = None) -> Verdict:
        """`max_error` may tighten the namespace's own for one request."""
        p = self.odds.wrong(sighting.signs)
        self._count(p)
        threshold = self.threshold
        if max_error is not None and max_error < self.terms.max_error:
            threshold = self._allowed(max_error)
        off = min(1.0, p * self._honesty)
        if p > threshold or self.threshold == 0.0:
            return Verdict("forward", 1 - p, 1.0, self.reason or f"p(wrong) {p:.3f}", 1 - off)
        if sighting.signs[COSINE] < self._farthest:
            return Verdict("forward", 1 - p, 1.0, "unlike what was checked here", 1 - off)
        chance = self._audit_chance(p)
        if self._rng.random() < chance:
            return Verdict("explore", 1 - p, chance, "audit", 1 - off)
        self._book_served(1, off)
        return Verdict("serve", 1 - p, chance, f"p(wrong) {p:.3f}", 1 - off)

    def skip(self) -> None:
        self._count(1.0)

    def forget(self, key: int) -> None:
        """What was learnt is of the namespace and not of a question."""

    def follow(self, max_error: float) -> None:
        """The operator promises something else from now on. What was learnt stays."""
        if max_error == self.terms.max_error:
            return
        self.terms = replace(self.terms, max_error=max_error)
        self._allowance.change(max_error, self._requests)
        if np.isfinite(self._upper).any():
            self._open()

    def _audit_chance(self, p: float) -> float:
        share = self.terms.ceiling * math.sqrt(min(1.0, p / self.threshold))
        return max(self.terms.floor, share)

    def _count(self, p: float) -> None:
        if len(self._untold) < WINDOW:
            self._untold.append(p)
        self._ask(p)

    def _ask(self, p: float) -> None:
        self._requests += 1
        self._asked.add(self._requests, p)
        if self._requests % REFIT_EVERY == 0:
            self._refit()

    def _book_served(self, served: int, expected: float) -> None:
        self._served += served
        self._expected += expected
        self._untold_served += served
        self._untold_expected += expected

    # ------------------------------------------------------------------ others of the namespace

    def tell(self) -> Since:
        """What was asked since it was last told: for other gateways, and for a later life."""
        told = Since(tuple(self._untold), self._untold_served, self._untold_expected)
        self._untold = []
        self._untold_served, self._untold_expected = 0, 0.0
        return told

    def hear(self, since: Since) -> None:
        """What was asked elsewhere counts as if it had been asked here: the promise is about all
        requests of a namespace, and so is what the ledger proves."""
        for p in since.asked:
            self._ask(p)
        self._served += since.served
        self._expected += since.expected

    # ------------------------------------------------------------------ learning

    def learn(self, sighting: Sighting, verdict: Verdict, *, right: bool) -> None:
        wrong = not right
        p = 1 - verdict.p_right
        if verdict.chance < 1:
            self.ledger.audit(verdict.chance, wrong=wrong)
        # The odds see more of what is rarely labelled, with tempered weights: full ones are noise.
        weight = min(5.0, math.sqrt(1 / verdict.chance))
        self._labelled.add(self._requests, p, wrong, weight, tail=sighting.signs)
        if self.threshold and p <= self._hearing():
            self._listen(min(0.5, p * self._ratio), wrong=wrong)

    def lose(self, verdict: Verdict) -> None:
        """An audit ended without a label."""
        self.ledger.lose(verdict.chance)

    def _hearing(self) -> float:
        """How far above the threshold labels still tell about what is below it."""
        return max(1.5 * self.threshold, min(4 * self.threshold, 0.05))

    def _listen(self, p: float, *, wrong: bool) -> None:
        changed = self._alarm.hear(p, wrong=wrong, now=self._requests)
        if changed is None:
            return
        self._alarms += 1
        self._since = changed - 1
        self._upper[:] = np.inf
        self.threshold = 0.0
        self.reason = "the traffic has changed: learning anew"

    def _refit(self) -> None:
        """Odds and threshold from the labels of the window, or from the last `min_evidence` where
        nearly everything is served and a window holds fewer."""
        oldest = max(self._since, self._requests - WINDOW)
        known = self._labelled.rows()
        known = known[known[:, 0] > self._since]
        labelled = known[known[:, 0] > oldest]
        if len(labelled) < self.terms.min_evidence:
            labelled = known[np.argsort(known[:, 0])[-self.terms.min_evidence :]]
        if len(labelled) < REFIT_EVERY:
            return
        _, p, wrong, weight, *_ = labelled.T
        self.odds.fit(labelled[:, 4:], wrong, weight)
        if len(labelled) < self.terms.min_evidence:
            return
        self._farthest = float(np.sort(labelled[:, 4 + COSINE])[SUPPORT - 1])
        asked = self._asked.rows()
        self._weigh(asked[asked[:, 0] > oldest, 1], p, wrong)
        audited = weight > 1
        seen, said = float(wrong[audited].sum()), float(p[audited].sum())
        self._honesty = (DOUBT + seen) / (DOUBT + said)
        self._nearest = float(asked[asked[:, 0] > self._requests - 10 * REFIT_EVERY, 1].min())
        self._open()

    def _weigh(self, asked: Floats, p: Floats, wrong: Floats) -> None:
        """For each level: a high percentile of the wrong hits among the next `horizon` requests."""
        bins = len(LEVELS) + 1

        def below(values: Floats, amounts: Floats) -> Floats:
            sums = np.bincount(np.searchsorted(LEVELS, values), amounts, bins)
            total: Floats = np.cumsum(sums.astype(np.float64))[:-1]
            return total

        mass = below(asked, asked) * (self.terms.horizon / len(asked))
        shape = 1.0 + below(p, wrong)
        self._ratios = shape / (1.0 + below(p, p))
        surely = gamma_upper(mass * self._ratios, shape, self.terms.z_rate)
        self._upper = poisson_upper(surely, self.terms.z_count)

    def _allowed(self, max_error: float) -> float:
        """The largest level of which all lower ones fit into the budget, 0 if none does."""
        too_much = np.flatnonzero(self._upper > max_error * self.terms.horizon)
        last = int(too_much[0]) - 1 if len(too_much) else len(LEVELS) - 1
        return float(LEVELS[last]) if last >= 0 else 0.0

    def _open(self) -> None:
        """As far as the labels allow, and say why if that is not at all."""
        self.threshold = self._allowed(self.terms.max_error)
        allowed = self._allowance.at(self._requests)
        if self.ledger.at_most() > allowed + BRAKE * self._blind:
            self.threshold = 0.0
            self.reason = "audits caught more than max_error allows, or too many ended untold"
            return
        if self.threshold == 0.0:
            self.reason = "the labels allow no hit at this max_error"
            return
        self._ratio = max(1.0, float(self._ratios[int(np.searchsorted(LEVELS, self.threshold))]))
        self.reason = "" if self._nearest <= self.threshold else "no kept question is near enough"

    @property
    def labels(self) -> int:
        return self._labelled.count

    @property
    def held_bytes(self) -> int:
        """Of what grows with what is asked."""
        return self._asked.held_bytes + self._labelled.held_bytes

    # ------------------------------------------------------------------ across restarts

    def snapshot(self) -> bytes:
        """All that was learnt, for `restore`; about 400 kB when the window is full."""
        counts = (self._requests, self._served, self._expected, self._since, self._alarms)
        rings = (self._asked.snapshot(), self._labelled.snapshot())
        proven = (self.ledger.snapshot(), self._allowance.snapshot())
        return msgspec.msgpack.encode((SIGNS, counts, rings, self.odds.weights.tolist(), *proven))

    def restore(self, blob: bytes) -> bool:
        """Take over a snapshot; False, and nothing is changed, if it is not one of this version."""
        try:
            kept = _reader.decode(blob)
        except msgspec.DecodeError:
            return False
        signs, counts, (asked, labelled), weights, ledger, allowance = kept
        if signs != SIGNS:
            return False
        self._requests, self._served, self._expected, self._since, self._alarms = counts
        self._asked.restore(asked)
        self._labelled.restore(labelled)
        self.odds.weights = np.array(weights)
        self.ledger.restore(ledger)
        self._allowance.restore(allowance)
        self._allowance.change(self.terms.max_error, self._requests)
        if self._requests:
            self._refit()
        return True

    def state(self) -> State:
        return State(
            max_error=self.terms.max_error,
            requests=self._requests,
            served=self._served,
            audited=self.ledger.audited,
            labels=self._labelled.count,
            threshold=self.threshold,
            allowed_wrong=self._allowance.at(self._requests),
            expected_wrong=self._expected,
            proven_at_most=min(float(self._served), self.ledger.at_most()),
            proven_at_least=self.ledger.at_least(),
            alarms=self._alarms,
            reason=self.reason,
        )
