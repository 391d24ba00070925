"""`auto` before anybody calibrated it: keeps only what the small model is plainly sure of.

There is no promise without labels, and this route makes none: it says "uncalibrated" in every
reason, and its cuts are set so that a doubt means the large model. A kept answer has ended within
what is held back (where nobody reads along, all of it is), has log-probabilities, none of them low,
states no wrong sum and does not hedge; a question with tools, or a long one, is not tried at all.
Replace it by calibrating.

The cuts come from 13,689 graded tasks of the bundled models, where small is right on 74 % and large
on 95 %. Cuts that sound careful are not: p ≥ .37 for each of the first 16 tokens and a mean of .90
kept 86 % and lost 13.5 points, because a wrong answer may begin as surely as a right one. Whole
answers with p ≥ .90 for each token and a mean of .99 were 53 %, and lost half a point.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascade.features import BEFORE
from cascade.judge import AFTER, Verdict
from cascade.routes.base import Choice, Question

NAME = "uncalibrated, conservative cuts"
_AT = {name: index for index, name in enumerate(AFTER)}
_LOG_CHARS, _TOOLS = BEFORE.index("log_chars"), BEFORE.index("tools")


@dataclass(frozen=True, slots=True)
class Cautious:
    """Log-probabilities are natural logarithms: −0.1 is a probability of .90, −0.01 of .99."""

    least_mean: float = -0.01
    least: float = -0.10
    must_end: bool = True
    """Whether an answer that goes on after what is held back counts as a doubt."""
    longest_log_chars: float = 7.6
    """log of 2,000 characters."""
    hold_tokens: int | None = 32
    whole_tokens: int = 512
    needs: frozenset[str] = frozenset({"before"})

    def before(self, question: Question) -> Choice:
        features = question.inputs["before"]
        large = question.large.model
        if question.standing.model == large:
            return Choice(large, f"{NAME}: the conversation stays with large")
        if question.small.cost_nano >= question.large.cost_nano:
            return Choice(large, f"{NAME}: large costs no more here; {question.costs}")
        if features[_TOOLS]:
            return Choice(large, f"{NAME}: calls with tools go to large")
        if features[_LOG_CHARS] > self.longest_log_chars:
            return Choice(large, f"{NAME}: long questions go to large")
        return Choice(question.small.model, f"{NAME}: trying small; {question.costs}", judged=True)

    def after(self, question: Question, verdicts: tuple[Verdict, ...]) -> Choice:
        doubt = next(filter(None, (self._doubt(one, question.whole) for one in verdicts)), "")
        if doubt:
            return Choice(question.large.model, f"{NAME}: escalated, {doubt}")
        if question.whole and not all(verdict.ended for verdict in verdicts):
            return Choice(question.small.model, f"{NAME}: sure so far, goes on", judged=True)
        return Choice(question.small.model, f"{NAME}: small is sure, kept; {question.costs}")

    def _doubt(self, verdict: Verdict, waits: bool) -> str:
        if verdict.broken:
            return verdict.broken
        seen = {name: float(verdict.features[at]) for name, at in _AT.items()}
        doubts = {
            "no log-probabilities to judge by": not seen["has_logprobs"],
            "the answer was cut off": seen["cut_by_length"] > 0,
            "a long answer": self.must_end and not (waits or verdict.ended),
            "a stated sum is wrong": seen["any_sum_wrong"] > 0,
            "the answer hedges": seen["hedges"] > 0,
            f"a token's log-probability is {seen['logprob_min']:.2f}": (
                seen["logprob_min"] < self.least
            ),
            f"the mean log-probability is {seen['logprob_mean']:.2f}": (
                seen["logprob_mean"] < self.least_mean
            ),
        }
        return next((doubt for doubt, present in doubts.items() if present), "")
