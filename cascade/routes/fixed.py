"""The route that asks no question: always the same model."""

from __future__ import annotations

from collections.abc import Callable

from cascade.routes.base import Choice
from engine.contract import Call


def fixed(model: str) -> Callable[[Call], Choice]:
    """Every call goes to `model`."""
    choice = Choice(model, f"policy fixed: always {model}")

    def route(_: Call) -> Choice:
        return choice

    return route
