"""A model of ten lines: what a layer wraps, or a server serves, in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from engine.contract import (
    Answer,
    Call,
    Delta,
    End,
    Event,
    Finish,
    Start,
    TokenLogprob,
    Trail,
    Usage,
)


def words(call: Call) -> list[str]:
    """The default answer: what was asked, word by word."""
    asked = call.messages[-1].text if call.messages else str(call.prompt)
    return [f"{word} " for word in f"You said: {asked}".split()]


class FakeModel:
    """Answers every call with `say(call)`. Counts calls, notes those that were closed early, and
    can wait (`pause_s` before each piece, for `gate` after Start) or raise (`error` before Start,
    `late_error` after). A bench does not `keep` its calls."""

    def __init__(
        self,
        say: Callable[[Call], Sequence[str]] = words,
        *,
        name: str = "fake",
        pause_s: float = 0.0,
        gate: asyncio.Event | None = None,
        error: Exception | None = None,
        late_error: Exception | None = None,
        end: bool = True,
        keep: bool = True,
    ) -> None:
        self.say, self.name, self.pause_s, self.end = say, name, pause_s, end
        self.gate = gate
        self.keep = keep
        self.error, self.late_error = error, late_error
        self.calls: list[Call] = []
        self.trails: list[Trail] = []
        self.closed_early = 0

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        if self.keep:
            self.calls.append(call)
            self.trails.append(trail)
        if self.error is not None:
            raise self.error
        pieces = self.say(call)
        said, done, ended = 0, False, False
        try:
            yield Start(trail.id, 1_700_000_000, self.name, self.name)
            if self.gate is not None:
                await self.gate.wait()
            for event in self._middle(call, pieces):
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)
                said += isinstance(event, Delta)
                yield event
            if self.late_error is not None:
                raise self.late_error
            done = True
            if self.end:
                ended = True
                yield End(Usage(7, said, 2, 5 + said))
        finally:
            self.closed_early += not done
            if not ended:
                trail.cut(self.name, Usage(7, said, 2, 5 + said))

    def _middle(self, call: Call, pieces: Sequence[str]) -> list[Event]:
        events: list[Event] = []
        for index in range(call.n):
            for token, piece in enumerate(pieces):
                logprobs = (_logprob(piece, call.top_logprobs),) if call.logprobs else ()
                events.append(Delta(index, "text", piece, (token,), logprobs))
            events.append(Finish(index, "stop"))
        return events


def _logprob(piece: str, top: int) -> TokenLogprob:
    others = tuple(TokenLogprob(f"alt{i}", b"alt%d" % i, -1.0 - i) for i in range(top))
    return TokenLogprob(piece, piece.encode(), -0.5, others)
