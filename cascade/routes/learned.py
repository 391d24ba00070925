"""The quality policy: the small model wherever the promise allows it.

Score. Before token 1 the gain model says how much better the large model would do, weighed by how
long its answer would be (gain.scores_of): s₀. Where that is clear the large model is asked at once.
Otherwise the small one answers, and the judge's model, which knows the answer's first tokens as
well, says s₁. A request goes to the large model when

    max(s₀ − margin, s₁) > cut

so one number decides, one cut is calibrated, and a lower cut sends a superset: the family that
Learn then Test walks along (promise.py). The margin says how sure the first look must be to save
the small model's attempt; it is fixed before calibration.

Where nobody reads along (JSON), the judge looks twice: at the first tokens, to give a hopeless
answer up early, and at the whole of it, s₂. Then a request goes to the large model when

    max(s₀ − margin', s₁ − early, s₂) > cut'

again one number with a cut of its own, and an answer that runs on for too long goes there, too. The
two cuts are tested together (promise.choose_cuts), so that both promises hold at once, however the
requests divide between the two ways of asking.

What the promise allows and the cost forbids. Always-large loses nothing by definition, so every
deviation towards the large model keeps the promise: where it already holds the conversation's
prefix and is cheaper for that, where a conversation would be passed down for little, where the
small model's answer is broken. No deviation goes the other way.

Rejected. Scoring gain per dollar, cached prefix included: the order would depend on what the prefix
tree holds at that moment, and the labels of another moment would promise nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascade.conversation import Turn
from cascade.gain import Estimate, GainModel
from cascade.judge import Verdict
from cascade.promise import Cut, Promise
from cascade.routes.base import Choice, Question

MARGIN = 0.15
"""How much further above the cut s₀ must be than s₁: as much as a judge's look usually moves it."""
SETTLED = 0.05
"""A conversation that is with the large model comes down only this far below the cut."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """s₀, and s₁ and s₂ by one judge. Without `judge` the decision is made before token 1. It looks
    at the same `hold_tokens` in calibration as here, or the scores would not be those tested."""

    route: GainModel
    judge: GainModel | None = None
    hold_tokens: int | None = 16
    margin: float = MARGIN


@dataclass(frozen=True, slots=True)
class Whole:
    """How an answer is judged that nobody reads along: waited for until it has `tokens`, with
    margins and a cut of its own."""

    tokens: int
    margin: float
    early: float
    cut: Cut


@dataclass(frozen=True, slots=True)
class Quality:
    """Calibrated: the cuts were found by `promise.choose_cuts` on the tenant's labels. Without
    `whole` every answer is judged by its first tokens."""

    scorer: Scorer
    promise: Promise
    cut: Cut
    whole: Whole | None = None

    @property
    def needs(self) -> frozenset[str]:
        judge = self.scorer.judge
        return (self.scorer.route.uses | (judge.uses if judge else frozenset())) - {"after"}

    @property
    def hold_tokens(self) -> int | None:
        return self.scorer.hold_tokens

    @property
    def whole_tokens(self) -> int:
        return self.whole.tokens if self.whole else 0

    @property
    def name(self) -> str:
        """The policy, as it is explained and as it stands in cache keys."""
        lost, sure = 100 * self.promise.epsilon, 100 * (1 - self.promise.delta)
        held = f"calibrated on {self.cut.labels} labels"
        if not self.cut.promised:
            held = f"{self.cut.labels} labels are too few to promise anything bolder than large"
        return f"policy quality (≤ {lost:.3g} points lost with {sure:.3g} %; {held})"

    def before(self, question: Question) -> Choice:
        large, small = question.large, question.small
        if not self._cut(question).promised:
            return Choice(large.model, self.name)
        if not self.needs <= question.inputs.keys():
            return Choice(large.model, f"{self.name}: no embedding, so no score; large is safe")
        if small.cost_nano >= large.cost_nano:
            return Choice(large.model, f"{self.name}: large costs no more here; {question.costs}")
        return self._first_look(question, self.scorer.route.estimate(question.inputs))

    def _cut(self, question: Question) -> Cut:
        return self.whole.cut if self.whole and question.whole else self.cut

    def _first_look(self, question: Question, estimate: Estimate) -> Choice:
        judged = self.scorer.judge is not None
        margin = self.whole.margin if self.whole and question.whole else self.scorer.margin
        limit = self._cut(question).threshold + (margin if judged else 0.0)
        with_large = question.standing.turn is Turn.LATER and (
            question.standing.model == question.large.model
        )
        if with_large:
            limit = self._cut(question).threshold - SETTLED
        seen = f"gain {estimate.gain:+.3f}, score {estimate.score:+.3f}"
        told = f"{self.name}: {seen}, cut {limit:+.3f}; {question.costs}"
        if estimate.score > limit:
            stays = "; the conversation stays" if with_large else ""
            return Choice(question.large.model, told + stays).at(estimate.score, limit)
        return Choice(question.small.model, told, judged).at(estimate.score, limit)

    def after(self, question: Question, verdicts: tuple[Verdict, ...]) -> Choice:
        for verdict in verdicts:
            if verdict.broken:
                reason = f"{self.name}: escalated, {verdict.broken}"
                return Choice(question.large.model, reason)
        cut = self._cut(question).threshold
        score = max(self._judged(question, verdict) for verdict in verdicts)
        ended = all(verdict.ended for verdict in verdicts)
        seen = "whole answer" if ended else "first tokens"
        told = f"{self.name}: judged by the {seen}, score {score:+.3f}, cut {cut:+.3f}"
        if score > cut:
            escalated = Choice(question.large.model, f"{told}, escalated; {question.costs}")
            return escalated.at(score, cut)
        if question.whole and not ended:
            return Choice(question.small.model, f"{told}, goes on", judged=True).at(score, cut)
        return Choice(question.small.model, f"{told}, kept; {question.costs}").at(score, cut)

    def _judged(self, question: Question, verdict: Verdict) -> float:
        judge = self.scorer.judge
        assert judge is not None, "asked to judge without a judge's model"
        score = judge.estimate({**question.inputs, "after": verdict.features}).score
        if self.whole and question.whole and not verdict.ended:
            return score - self.whole.early
        return score
