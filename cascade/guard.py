"""What stands between us and a server that is slow, full or broken: breaker, retries, fallbacks.

Retries are safe before the first byte of an answer and nowhere else: afterwards the caller has seen
text. What is tried again is what may pass (the connection failed, 429, 500, 502, 503, 504); how
long to wait the server's Retry-After says, else a doubling pause with full jitter, so that a crowd
that failed together does not return together. A pause that does not fit the deadline is not begun.

The breaker spares a broken server our requests, and our callers the wait for its time-outs:

    closed ──(`failures` in a row)──▸ open ──(`cool_down_s`)──▸ half-open ──(one success)──▸ closed
                                        ▴────────(one failure)──────┘

Half-open lets one request through at a time. What the caller did wrong (4xx) is no failure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

from engine.contract import (
    Answer,
    Answerer,
    Call,
    Decision,
    Overloaded,
    Start,
    Trail,
    UpstreamFailed,
)

State = Literal["closed", "open", "half-open"]


class Breaker:
    """One per upstream, on one event loop. `admit` is followed by exactly one of `succeeded`,
    `failed` and `abandoned` (the caller hung up: nothing was learnt)."""

    def __init__(
        self, clock: Callable[[], float], failures: int = 5, cool_down_s: float = 10.0
    ) -> None:
        self._clock = clock
        self._limit = failures
        self._cool_down_s = cool_down_s
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        if self._opened_at is None:
            return "closed"
        return "open" if self._clock() - self._opened_at < self._cool_down_s else "half-open"

    @property
    def reopens_in_s(self) -> float:
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._cool_down_s - self._clock())

    def admit(self) -> bool:
        state = self.state
        if state == "closed":
            return True
        if state == "open" or self._probing:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        self._failures, self._opened_at, self._probing = 0, None, False

    def failed(self) -> None:
        self._failures += 1
        self._probing = False
        if self._opened_at is not None or self._failures >= self._limit:
            self._opened_at = self._clock()

    def abandoned(self) -> None:
        self._probing = False


@dataclass(frozen=True, slots=True)
class Backoff:
    """At most `attempts` tries in all. `rng` gives the jitter."""

    rng: random.Random
    attempts: int = 3
    first_s: float = 0.25
    most_s: float = 8.0

    def pause_s(
        self, tried: int, retry_after_s: float | None, remaining_s: float | None
    ) -> float | None:
        """How long to wait after the `tried`-th try; None: give up."""
        if tried >= self.attempts:
            return None
        limit = min(self.most_s, self.first_s * 2 ** (tried - 1))
        pause = self.rng.uniform(0.0, limit) if retry_after_s is None else retry_after_s
        if pause > self.most_s or (remaining_s is not None and pause >= remaining_s):
            return None
        return pause


class Fallbacks:
    """An answerer that asks others in order, until one starts to answer.

    Only what may be better elsewhere moves on: an upstream that broke, is full, or is not there. A
    bad request is bad everywhere, and after Start nothing is tried again. Who `serves` is false of
    (it cannot do what is asked, or the one who asks may not use it) is no fallback for the call;
    the first is asked in any case, and refuses by itself."""

    def __init__(
        self,
        answerers: Sequence[tuple[str, Answerer]],
        serves: Callable[[str, Call, Trail], bool] = lambda _name, _call, _trail: True,
    ) -> None:
        assert answerers, "at least one answerer"
        self._first, *self._rest = answerers
        self._serves = serves

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        more = [one for one in self._rest if self._serves(one[0], call, trail)]
        *others, last = [self._first, *more]
        for name, answerer in others:
            answer = answerer(replace(call, model=name), trail)
            started = False
            async with aclosing(answer):
                try:
                    async for event in answer:
                        started = started or isinstance(event, Start)
                        yield event
                except (UpstreamFailed, Overloaded) as error:
                    if started:
                        raise
                    trail.decisions.append(Decision("fallback", name, error.message))
                    continue
            return
        name, answerer = last
        final = answerer(replace(call, model=name), trail)
        async with aclosing(final):
            async for event in final:
                yield event
