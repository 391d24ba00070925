"""What the gateway needs of whoever runs the models: the engine, servers elsewhere, or a fake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from engine.contract import Answerer
from gateway.catalog import ModelCard
from gateway.observe.metrics import EngineState


class Backend(Protocol):
    """Models that are loaded. `stop` is called once, after the last answer."""

    @property
    def answerers(self) -> Mapping[str, Answerer]:
        """By model name."""
        ...

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """By model name."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def states(self) -> Mapping[str, EngineState]:
        """What each model is doing now."""
        ...

    def upstream_errors(self) -> Mapping[tuple[str, str], int]:
        """(model, kind) → how often a server elsewhere failed since the start."""
        ...

    def problem(self) -> str | None:
        """Why it cannot answer, for /readyz; None when it can."""
        ...

    def lost(self) -> str | None:
        """Why only another process can answer again: a GPU that failed. None: this one can."""
        ...


class CannotLoad(Exception):
    """A model cannot be served. The text names the setting or directory, and the remedy."""


class PlainBackend:
    """Answerers that need no care of their own: fakes."""

    def __init__(self, answerers: Mapping[str, Answerer], cards: Mapping[str, ModelCard]) -> None:
        self.answerers = answerers
        self.cards = cards

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    def states(self) -> Mapping[str, EngineState]:
        return {}

    def upstream_errors(self) -> Mapping[tuple[str, str], int]:
        return {}

    def problem(self) -> str | None:
        return None

    def lost(self) -> str | None:
        return None
