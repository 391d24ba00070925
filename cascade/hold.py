"""The first tokens of an answer, held back until somebody has judged them.

A stream that has begun cannot be taken back, so the cascade holds the small model's events here
until each choice has `tokens` tokens or has ended (or, with None, until the answer has ended), and
then lets them go, holds on for more, or throws them away. Nothing is lost on the way: what was held
is passed on as it came, and what was thrown away is the large model's draft.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from cascade.judge import Answered
from engine.contract import Delta, End, Event, Finish, FinishReason, Usage, unroll


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    arguments: dict[int, str] = field(default_factory=dict)
    tokens: int = 0
    finish: FinishReason | None = None

    def answered(self) -> Answered:
        complete = tuple(self.arguments.values())
        return Answered("".join(self.texts), tuple(self.logprobs), self.finish, complete)


class Hold:
    """Owned by one answer. `tokens` None holds everything."""

    def __init__(self, choices: int, tokens: int | None) -> None:
        self._choices = [_Choice() for _ in range(choices)]
        self._limit = tokens
        self.usage: Usage | None = None
        """What the answer took, if it ended while it was held."""
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        self.events.append(event)
        for part in unroll(event):
            if isinstance(part, Delta):
                self._read(self._choices[part.index], part)
            elif isinstance(part, Finish):
                self._choices[part.index].finish = part.reason
            elif isinstance(part, End):
                self.usage = part.usage

    @property
    def is_full(self) -> bool:
        """Whether there is enough to judge. An answer whose every choice ended is still held for
        its End, so that usage is never late."""
        if self.usage is not None or self._limit is None:
            return self.usage is not None
        waiting = [choice for choice in self._choices if choice.finish is None]
        return bool(waiting) and all(choice.tokens >= self._limit for choice in waiting)

    def hold_on(self, tokens: int) -> None:
        """Wait for the end, or for so many tokens of each choice."""
        self._limit = tokens

    @property
    def tokens(self) -> int:
        return sum(choice.tokens for choice in self._choices)

    @property
    def text(self) -> str:
        """The first choice's text: what a draft is made of."""
        return "".join(self._choices[0].texts)

    def answers(self) -> Iterator[Answered]:
        for choice in self._choices:
            yield choice.answered()

    def _read(self, choice: _Choice, delta: Delta) -> None:
        choice.tokens += len(delta.token_ids) or 1
        choice.logprobs += [entry.logprob for entry in delta.logprobs]
        if delta.kind == "text":
            choice.texts.append(delta.payload)
        elif delta.kind == "tool":
            call = json.loads(delta.payload)
            at = int(call.get("index", 0))
            more = call.get("function", {}).get("arguments") or ""
            choice.arguments[at] = choice.arguments.get(at, "") + more
