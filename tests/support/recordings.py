"""Recordings, calls and answers for the tests of cache/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cache.key import family_of
from cache.replay import Recording, pack_body
from engine.contract import (
    Answer,
    AnswerError,
    Call,
    Delta,
    End,
    Event,
    Finish,
    Message,
    Part,
    Start,
    Trail,
    Usage,
    unroll,
)


def call_of(text: str = "What is the capital of France?", **fields: object) -> Call:
    defaults: dict[str, object] = {
        "kind": "chat",
        "model": "small",
        "scope": "tenant:default",
        "fingerprint": "weights-1",
        "messages": (Message("user", (Part("text", text),)),),
    }
    return Call(**{**defaults, **fields})  # type: ignore[arg-type]


def events_of(*words: str) -> list[Delta | Finish]:
    return [*(Delta(0, "text", word, (7,)) for word in words), Finish(0, "stop")]


def answer_of(*words: str, origin: str = "small", prompt_tokens: int = 5) -> tuple[Event, ...]:
    usage = Usage(prompt_tokens, len(words), 2, prompt_tokens + len(words) - 2)
    return (Start("raw", 1_700_000_000, "demo", origin), *events_of(*words), End(usage))


def recording_of(
    *words: str,
    stored_at: float = 1000.0,
    ttl_s: float = 3600.0,
    scope: str = "tenant:default",
    model: str = "demo",
    tags: tuple[str, ...] = (),
    prompt_tokens: int = 5,
) -> Recording:
    return Recording(
        model=model,
        created=1_700_000_000,
        origin="small",
        usage=Usage(prompt_tokens, len(words), 2, prompt_tokens + len(words) - 2),
        body=pack_body(events_of(*words)),
        stored_at=stored_at,
        ttl_s=ttl_s,
        scope=scope,
        tags=tags,
    )


def key_number(number: int, scope: str = "tenant:default") -> bytes:
    """A key as cache/key.py makes them: the last bytes are the scope's."""
    return number.to_bytes(8, "big") * 3 + family_of(scope)


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Inner:
    """An inner answerer: says `events`, then raises `error` if there is one. Counts its runs."""

    events: Sequence[Event] = field(default_factory=lambda: answer_of("Par", "is"))
    error: Exception | None = None
    calls: list[tuple[Call, Trail]] = field(default_factory=list)
    closed: int = 0

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        self.calls.append((call, trail))
        try:
            for event in self.events:
                yield event
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1


async def hear(answer: Answer) -> list[Event]:
    """All events, a Burst unrolled."""
    return [part async for event in answer for part in unroll(event)]


async def fails(answer: Answer) -> AnswerError:
    try:
        await hear(answer)
    except AnswerError as error:
        return error
    raise AssertionError("the answer did not fail")


def said(events: Sequence[Event]) -> str:
    return "".join(e.payload for e in events if isinstance(e, Delta))
