"""The latency policy: another policy, but the small model answers while the large one is too slow.

Under overload a queue for the large model makes everybody wait for answers that most would not have
needed. This route asks the policy inside it, and overrides its "large" while the large model's
first token is expected later than the objective and the small one's earlier. Such an answer is
marked
"spilled": the inner policy's promise does not hold for it, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cascade.judge import Verdict
from cascade.routes.base import Choice, Question, Route

ExpectedTtft = Callable[[str], float]
"""Model → seconds until a call that came now would see its first token (queue and prefill)."""


@dataclass(frozen=True, slots=True)
class Latency:
    inner: Route
    objective_s: float
    expected_ttft_s: ExpectedTtft

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs

    @property
    def hold_tokens(self) -> int | None:
        return self.inner.hold_tokens

    @property
    def whole_tokens(self) -> int:
        """An answer of small that is waited for to its end delays large's by all of it: whoever
        asks for speed gets the decision on the first tokens, with that one's cut."""
        return 0

    def before(self, question: Question) -> Choice:
        return self._or_spill(question, self.inner.before(question))

    def after(self, question: Question, verdicts: tuple[Verdict, ...]) -> Choice:
        choice = self.inner.after(question, verdicts)
        if any(verdict.broken for verdict in verdicts):
            return choice
        return self._or_spill(question, choice)

    def _or_spill(self, question: Question, choice: Choice) -> Choice:
        if choice.model != question.large.model:
            return choice
        large = self.expected_ttft_s(question.large.model)
        small = self.expected_ttft_s(question.small.model)
        if large <= self.objective_s or small >= large:
            return choice
        reason = (
            f"spilled to small, no promise: large's first token is expected in {large:.2f} s, "
            f"the objective is {self.objective_s:.2f} s (else {choice.reason})"
        )
        return replace(choice, model=question.small.model, reason=reason, judged=False)
