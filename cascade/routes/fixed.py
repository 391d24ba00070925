"""The route that asks no question: always the same model."""

from __future__ import annotations

from dataclasses import dataclass

from cascade.judge import Verdict
from cascade.routes.base import Choice, Question


@dataclass(frozen=True, slots=True)
class Fixed:
    choice: Choice
    needs: frozenset[str] = frozenset()
    hold_tokens: int | None = 0
    whole_tokens: int = 0

    def before(self, question: Question) -> Choice:  # noqa: ARG002 - the point of it
        return self.choice

    def after(self, question: Question, verdicts: tuple[Verdict, ...]) -> Choice:  # noqa: ARG002
        return self.choice


def fixed(model: str) -> Fixed:
    """Every call goes to `model`."""
    return Fixed(Choice(model, f"policy fixed: always {model}"))
