"""How long a call that came now would wait for its first token: what the latency policy asks.

Problem. A queue is seen too late in answers that are complete: under overload those that would say
"slow" have not begun yet.

Choice. The running mean of what recent first tokens took, or, where longer, what the call that has
waited longest for its first token has waited so far. The mean fades while nothing comes in (half
each 10 s), else a model that was slow once and is therefore avoided would look slow for ever.

Rejected: queue length over throughput, because a server elsewhere tells neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import aclosing

from engine.contract import Answer, Answerer, Call, Start, Trail

WEIGHT = 0.2
HALF_LIFE_S = 10.0


class FirstTokens:
    """Of the models of one event loop. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._means: dict[str, tuple[float, float]] = {}
        self._waiting: dict[str, dict[int, float]] = {}
        self._count = 0

    def expected_s(self, model: str) -> float:
        now = self._clock()
        mean, at = self._means.get(model, (0.0, now))
        faded = mean * math.exp2((at - now) / HALF_LIFE_S)
        longest = next(iter(self._waiting.get(model, {}).values()), now)
        return max(faded, now - longest)

    def watched(self, model: str, answerer: Answerer) -> Answerer:
        """`answerer`, timed until its Start."""

        async def timed(call: Call, trail: Trail) -> Answer:
            waiting, key, began = self._enter(model)
            answer = answerer(call, trail)
            try:
                async with aclosing(answer):
                    async for event in answer:
                        if isinstance(event, Start):
                            waiting.pop(key, None)
                            self._learn(model, self._clock() - began)
                        yield event
            finally:
                waiting.pop(key, None)

        return timed

    def _enter(self, model: str) -> tuple[dict[int, float], int, float]:
        """In the order of arrival, so that the first that waits has waited longest."""
        self._count += 1
        waiting = self._waiting.setdefault(model, {})
        began = waiting[self._count] = self._clock()
        return waiting, self._count, began

    def _learn(self, model: str, took_s: float) -> None:
        now = self._clock()
        mean, _ = self._means.get(model, (took_s, now))
        self._means[model] = (mean + WEIGHT * (took_s - mean), now)
