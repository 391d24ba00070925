"""What the audits alone prove about the wrong hits that were served. No model, no assumption.

Problem. Nobody tells us that a served hit was wrong. But before a hit is served a coin is thrown:
with probability e the model answers instead (an audit), and then we do learn it. So of the wrong
hits that could have been served, each was seen with a known probability, whatever the traffic,
the embedder or an attacker did.

Choice. Let S be the wrong hits served so far and W the wrong ones caught by audits, with chances
e_i. For any l > 0 with (1 - e) exp(l) < 1 choose k(e) such that

    (1 - e) exp(l) + e exp(-k(e)) = 1

Then exp(l S - sum over W of k(e_i)) is a martingale that starts at 1: each wrong hit multiplies it
by a factor of mean 1, and nothing else moves it. Ville's inequality bounds it by 1/alpha at *all*
times at once with probability 1 - alpha, which turns round into

    S <= (log(1/alpha) + sum k(e_i)) / l          for all t

An audit whose outcome nobody learns (its caller hung up, the model failed) may have been one that
would have caught: whoever deceives would see to that. So it counts as a wrong one here, and as a
right one in the lower bound. That keeps both true on any traffic; the price is paid in hits.

With the roles swapped the same gives a lower bound. A few values of l are tried at once (alpha is
split among them), because the best one depends on how much is caught.

Price: the bound cannot see below about 3 / e. With one audit in 25, nothing caught still means
"up to 90 wrong hits", so the ledger proves the long run and brakes the worst case; what holds
within the next 2,000 requests is the business of cache/verify_budget.py.

Source: Ville's inequality and test martingales as in Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting" (2020).
"""

from __future__ import annotations

import math

STEPS = (0.99, 0.9, 0.7, 0.4, 0.2)
"""Bets, as shares of the largest l that is allowed."""


class Ledger:
    """Running bounds on the served wrong hits of one namespace, each valid at all times at once
    with probability 1 - `alpha`. No audit chance may be lower than `floor`."""

    def __init__(self, floor: float, alpha: float = 0.05) -> None:
        self.audited = 0
        self.caught = 0
        self.estimate = 0.0
        """Unbiased, and noisy: a caught one at chance e stands for (1 - e)/e that were served."""
        self._floor = floor
        self._toll = math.log(len(STEPS) / alpha)
        most = -math.log1p(-floor)
        self._upper_bets = [most * step for step in STEPS]
        self._upper = [0.0] * len(STEPS)
        self._lower_bets = [2 * most * step for step in STEPS]
        self._lower = [0.0] * len(STEPS)

    def audit(self, chance: float, *, wrong: bool) -> None:
        """A possible hit was answered by the model, which happens with probability `chance`."""
        assert chance >= self._floor
        self.audited += 1
        if not wrong:
            return
        self.caught += 1
        self.estimate += (1 - chance) / chance
        self._fear(chance)
        for index, bet in enumerate(self._lower_bets):
            self._lower[index] += math.log((1 - (1 - chance) * math.exp(-bet)) / chance)

    def lose(self, chance: float) -> None:
        """An audit ended without a label."""
        assert chance >= self._floor
        self.audited += 1
        self._fear(chance)

    def _fear(self, chance: float) -> None:
        for index, bet in enumerate(self._upper_bets):
            self._upper[index] -= math.log((1 - (1 - chance) * math.exp(bet)) / chance)

    def snapshot(self) -> tuple[int, int, float, list[float], list[float]]:
        return self.audited, self.caught, self.estimate, list(self._upper), list(self._lower)

    def restore(self, kept: tuple[int, int, float, list[float], list[float]]) -> None:
        self.audited, self.caught, self.estimate, self._upper, self._lower = kept

    def at_most(self) -> float:
        """No more wrong hits than this were served."""
        pairs = zip(self._upper, self._upper_bets, strict=True)
        return min((self._toll + seen) / bet for seen, bet in pairs)

    def at_least(self) -> float:
        """No fewer wrong hits than this were served."""
        pairs = zip(self._lower, self._lower_bets, strict=True)
        return max(0.0, *((seen - self._toll) / bet for seen, bet in pairs))
