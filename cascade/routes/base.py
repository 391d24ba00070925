"""What a route is asked, and what it says.

A route decides before token 1, and, where it chose to try the small model and judge it, again on
the tokens that were held back; where nobody reads along, a third time when the answer has ended. It
is a plain object without I/O, so that every policy is tested by calling it. The same question gives
the same choice, except where a policy counts (budget) or looks at the clock or the load (latency),
and those are injected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from numpy.typing import NDArray

from cascade.conversation import FIRST, Standing
from cascade.judge import Verdict
from engine.contract import Call

Inputs = Mapping[str, NDArray[Any]]
"""Block name ("embedding", "before", "after") → vector."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that can answer this call, and what that is expected to cost."""

    model: str
    cost_nano: int


@dataclass(frozen=True, slots=True)
class Question:
    """All that is known before token 1. `inputs` holds the blocks that the route `needs`, less the
    embedding where none could be made."""

    call: Call
    small: Candidate
    large: Candidate
    standing: Standing = FIRST
    inputs: Inputs = field(default_factory=dict)
    whole: bool = False
    """Nobody reads along, and the route waits for ends: small's answer may be judged when it has
    ended, instead of by its first tokens."""

    @property
    def costs(self) -> str:
        """For explanations, in micro-dollars."""
        small, large = _micro(self.small.cost_nano), _micro(self.large.cost_nano)
        return f"expected cost {small} µ$ small, {large} µ$ large"


def _micro(nano: int) -> str:
    """Three digits that say something, and never 4.15e+03."""
    return f"{nano / 1e3:,.0f}" if nano >= 100_000 else f"{nano / 1e3:.3g}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that is to answer, and why, for people. `judged`: its answer is held back and the
    route is asked again (after a look at the first tokens: once more, at the end); a final choice
    never is. A `score` above the `cut` means large."""

    model: str
    reason: str
    judged: bool = False
    score: float | None = None
    cut: float | None = None

    def at(self, score: float, cut: float) -> Choice:
        """The same choice, with the numbers that made it."""
        return replace(self, score=score, cut=cut)


class Route(Protocol):
    @property
    def needs(self) -> frozenset[str]:
        """The blocks that `before` reads; empty: it decides without features."""
        ...

    @property
    def hold_tokens(self) -> int | None:
        """How many tokens are held back for the judge; None: the whole answer."""
        ...

    @property
    def whole_tokens(self) -> int:
        """How long an answer is waited for that nobody reads along; 0: such are not told apart."""
        ...

    def before(self, question: Question) -> Choice: ...

    def after(self, question: Question, verdicts: tuple[Verdict, ...]) -> Choice:
        """One verdict per choice of the answer (n). Of a `whole` question some may not have ended:
        then the choice may be `judged` once more."""
        ...
