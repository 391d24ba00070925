"""Prompts and answers in the log, of tenants whose policy says so; of all others never.

The outermost layer, so that what is written is what the caller asked and read, whoever answered. It
stands aside, at the price of a look-up, for everybody else. A text is cut at `MOST_CHARACTERS`: a
log is no archive. An answer that broke off is written as far as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.contract import Answer, Answerer, Call, Delta, Trail, unroll
from gateway.observe.logs import Log

MOST_CHARACTERS = 20_000


class ContentLayer:
    """`wanted`: whether the tenant of that name has its content logged, now."""

    def __init__(self, inner: Answerer, wanted: Callable[[str], bool], log: Log) -> None:
        self._inner = inner
        self._wanted = wanted
        self._log = log

    def __call__(self, call: Call, trail: Trail) -> Answer:
        answer = self._inner(call, trail)
        return self._told(call, trail, answer) if self._wanted(trail.tenant) else answer

    async def _told(self, call: Call, trail: Trail, answer: Answer) -> Answer:
        said: dict[int, list[str]] = {}
        try:
            async for event in answer:
                for one in unroll(event):
                    if isinstance(one, Delta):
                        said.setdefault(one.index, []).append(one.payload)
                yield event
        finally:
            await answer.aclose()
            self._log.info(
                "content",
                id=trail.id,
                tenant=trail.tenant,
                model=call.model,
                asked=_asked(call),
                answered=[_cut("".join(pieces)) for _, pieces in sorted(said.items())],
            )


def _asked(call: Call) -> Any:
    if call.kind == "text":
        return _cut(call.prompt) if isinstance(call.prompt, str) else list(call.prompt)
    return [
        {"role": message.role, "text": _cut("".join(part.body for part in message.parts))}
        for message in call.messages
    ]


def _cut(text: str) -> str:
    over = len(text) - MOST_CHARACTERS
    return text if over <= 0 else f"{text[:MOST_CHARACTERS]}… ({over} characters more)"
