"""An answer's events put together, for a caller who wants it in one piece."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.contract import (
    Answer,
    Burst,
    Delta,
    End,
    Failed,
    Finish,
    FinishReason,
    Start,
    TokenLogprob,
    Usage,
)


@dataclass(slots=True)
class Choice:
    """One choice, growing."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tools: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        if delta.kind == "tool":
            _merge_tool(self.tools, orjson.loads(delta.payload))
            return
        (self.text if delta.kind == "text" else self.reasoning).append(delta.payload)
        if delta.logprobs:
            self.logprobs.extend(delta.logprobs)


@dataclass(slots=True)
class Collected:
    """A whole answer: either a `burst`, unopened, or its choices by index."""

    start: Start
    usage: Usage
    burst: Burst | None
    choices: dict[int, Choice]

    def opened(self) -> list[tuple[int, Choice]]:
        """The choices in order, whatever form the answer came in."""
        choices = dict(self.choices)
        for event in self.burst.read_whole() if self.burst else ():
            _add(choices, event)
        return sorted(choices.items())


async def collect(answer: Answer) -> Collected:
    """Everything until End, closing the answer. Raises Failed if there is none: an answer that was
    cut is not an answer."""
    start: Start | None = None
    burst: Burst | None = None
    choices: dict[int, Choice] = {}
    try:
        async for event in answer:
            kind = event.__class__
            if kind is Delta or kind is Finish:
                _add(choices, event)  # type: ignore[arg-type]
            elif kind is Burst:
                burst = event  # type: ignore[assignment]
            elif kind is Start:
                start = event  # type: ignore[assignment]
            elif kind is End and start is not None:
                return Collected(start, event.usage, burst, choices)  # type: ignore[union-attr]
    finally:
        await answer.aclose()
    raise Failed("The answer was cut before its end; send the request again.", code="answer_cut")


def _add(choices: dict[int, Choice], event: Delta | Finish) -> None:
    choice = choices.get(event.index)
    if choice is None:
        choice = choices[event.index] = Choice()
    if isinstance(event, Delta):
        choice.add(event)
    else:
        choice.reason = event.reason


def _merge_tool(tools: dict[int, dict[str, Any]], delta: dict[str, Any]) -> None:
    """OpenAI's rule: what comes first names the call; later arguments are appended."""
    whole = tools.setdefault(
        delta.get("index", 0),
        {"id": None, "type": "function", "function": {"name": "", "arguments": ""}},
    )
    whole["id"] = delta.get("id") or whole["id"]
    function = delta.get("function") or {}
    whole["function"]["name"] += function.get("name") or ""
    whole["function"]["arguments"] += function.get("arguments") or ""
