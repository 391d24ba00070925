"""The budget policy: at most so much of the traffic, or so many dollars, on the large model.

Problem. The limit is hard, the traffic is not known in advance, and the large model should get the
requests that gain most from it, not those that come first.

Choice. A meter is the hard limit: credit accrues with calls (a share) or with time (dollars), is
capped at a burst, and a large call that it cannot pay is answered by the small model. A cut spends
the credit well: the quantile of the last 512 gains at which the affordable share lies above, more
when the meter is full, less when it runs low. In any window of T calls at most share × T + burst go
to the large model, whatever the traffic does.

Rejected. A cut from a labelled sample alone: its share of large calls has a standard deviation of
.5/√n, 5 points at 100 labels, and drifts with the traffic. Online gradient steps on the cut: same
aim, a step size to tune.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cascade.gain import GainModel
from cascade.judge import Verdict
from cascade.routes.base import Choice, Question

WINDOW = 512
LEAST_SEEN = 16
"""Gains seen before the cut is trusted; until then only a gain above 0 is paid for."""


class Meter(Protocol):
    """Says what may be spent. `arrive` is called once per call, before anything else."""

    def arrive(self) -> None: ...

    def fullness(self) -> float:
        """0 (spent) to 1 (full)."""
        ...

    def share(self, cost_nano: int) -> float:
        """The share of such calls that the limit can pay in the long run."""
        ...

    def try_spend(self, cost_nano: int) -> bool: ...

    def describe(self) -> str: ...


@dataclass(slots=True)
class ShareMeter:
    """At most `limit` of the calls, 0 … 1, and `burst` more at a time."""

    limit: float
    burst: float = 10.0
    credit: float = 1.0

    def arrive(self) -> None:
        self.credit = min(self.burst, self.credit + self.limit)

    def fullness(self) -> float:
        return self.credit / self.burst

    def share(self, cost_nano: int) -> float:  # noqa: ARG002 - every call counts as one
        return self.limit

    def try_spend(self, cost_nano: int) -> bool:  # noqa: ARG002
        if self.credit < 1.0:
            return False
        self.credit -= 1.0
        return True

    def describe(self) -> str:
        return f"at most {self.limit:.0%} of calls on large"


class MoneyMeter:
    """At most `per_day_nano` nano-USD a day on the large model, by expected costs; what `burst_s`
    seconds bring may be spent at once."""

    def __init__(
        self, per_day_nano: int, clock: Callable[[], float], burst_s: float = 3_600.0
    ) -> None:
        self._rate = per_day_nano / 86_400.0
        self._burst = self._rate * burst_s
        self._credit = self._burst / 2
        self._clock = clock
        self._at = clock()
        self._gap_s = 1.0

    def arrive(self) -> None:
        now = self._clock()
        gap, self._at = now - self._at, now
        self._gap_s += 0.02 * (gap - self._gap_s)
        self._credit = min(self._burst, self._credit + gap * self._rate)

    def fullness(self) -> float:
        return self._credit / self._burst

    def share(self, cost_nano: int) -> float:
        return min(1.0, self._rate * self._gap_s / max(1, cost_nano))

    def try_spend(self, cost_nano: int) -> bool:
        if self._credit < cost_nano:
            return False
        self._credit -= cost_nano
        return True

    def describe(self) -> str:
        return f"at most ${self._rate * 86_400 / 1e9:.4g} a day on large"


class Budget:
    """Owned by one cascade: the meter and the window of gains are its state."""

    hold_tokens: int | None = 0
    whole_tokens = 0

    def __init__(self, model: GainModel, meter: Meter) -> None:
        self._model = model
        self._meter = meter
        self._gains: deque[float] = deque(maxlen=WINDOW)

    @property
    def needs(self) -> frozenset[str]:
        return self._model.uses

    @property
    def name(self) -> str:
        return f"policy budget ({self._meter.describe()})"

    def before(self, question: Question) -> Choice:
        self._meter.arrive()
        if not self.needs <= question.inputs.keys():
            return Choice(question.small.model, f"{self.name}: no embedding, so no score")
        gain = self._model.estimate(question.inputs).gain
        cut = self._cut(question.large.cost_nano)
        self._gains.append(gain)
        told = f"{self.name}: gain {gain:+.3f}, cut {cut:+.3f}; {question.costs}"
        if gain <= cut:
            return Choice(question.small.model, told).at(gain, cut)
        if not self._meter.try_spend(question.large.cost_nano):
            spent = f"{told}; the budget is spent for now"
            return Choice(question.small.model, spent).at(gain, cut)
        return Choice(question.large.model, told).at(gain, cut)

    def after(self, question: Question, verdicts: tuple[Verdict, ...]) -> Choice:  # noqa: ARG002
        raise AssertionError("a budget decides before token 1")

    def _cut(self, cost_nano: int) -> float:
        """Never below 0: a loss is not worth any credit."""
        if len(self._gains) < LEAST_SEEN:
            return 0.0
        share = self._meter.share(cost_nano) * (0.5 + self._meter.fullness())
        gains = np.fromiter(self._gains, dtype=np.float64)
        return max(0.0, float(np.quantile(gains, max(0.0, 1.0 - share))))
