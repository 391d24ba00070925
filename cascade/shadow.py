"""Labels from live traffic: some requests are answered again by both models, when nobody waits.

Problem. Learning from what was chosen sees only one model's answer per request, and only where the
policy already trusts it. Exploring (asking the other model at random and weighing by the inverse of
the probability) pays for each label in quality or money and multiplies the variance.

Choice. Our engine has idle time. A sample of answered requests is kept, and while the engine is
idle both models answer each of them; `grade` compares, and the row goes where `sluice calibrate`
reads. Both outcomes are seen and the sampling is independent of them, so the rows need no weights.
`wanted` narrows the sample to requests that a cut may keep small, the only ones whose labels matter
(calibrate.retest).

Price. The engine's idle time, prompts kept on disk (so it is off unless the tenant's policy says
so), and a grade that is only as good as its judge: agreement with the large model counts the small
one's better answers as wrong, which errs on the promise's side.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from cascade.hold import Hold
from cascade.judge import Answered
from engine.contract import (
    Answer,
    Answerer,
    AnswerError,
    Call,
    End,
    Trail,
)

SHARE = 0.05
"""Weight in the engine's fair scheduling: any real request goes first."""
IDLE_CHECK_S = 0.25


@dataclass(frozen=True, slots=True)
class Grades:
    """How right each answer was, in [0, 1]."""

    small: float
    large: float


Grade = Callable[[Call, str, str], Awaitable[Grades | None]]
"""(call, small's text, large's text) → grades; None: cannot be told."""


async def agreement(call: Call, small: str, large: str) -> Grades:  # noqa: ARG001
    """Where answers are short and checkable: the same words count as right, large's as truth."""
    return Grades(float(_plain(small) == _plain(large)), 1.0)


def _plain(text: str) -> str:
    return re.sub(r"[\s.!]+", " ", text).strip().casefold()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which answered requests are kept: `share` of those that are `wanted`, at most `waiting`."""

    share: float
    wanted: Callable[[Call], bool] = lambda _: True
    waiting: int = 1_000


class Shadow:
    """A layer around the cascade that passes answers through, and a task (`run`) that labels.

    Owned by one event loop. `is_idle` is asked before each run; `keep` gets each finished row.
    """

    def __init__(
        self,
        inner: Answerer,
        small: Answerer,
        large: Answerer,
        *,
        names: tuple[str, str],
        sampling: Sampling,
        rng: random.Random,
        grade: Grade,
        is_idle: Callable[[], bool],
        keep: Callable[[str], None],
    ) -> None:
        self._inner = inner
        self._sides = tuple(zip(names, (small, large), strict=True))
        self._sampling = sampling
        self._rng = rng
        self._grade = grade
        self._is_idle = is_idle
        self._keep = keep
        self._waiting: deque[Call] = deque(maxlen=sampling.waiting)
        self._arrived = asyncio.Event()

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        answer = self._inner(call, trail)
        async with aclosing(answer):
            async for event in answer:
                if isinstance(event, End):
                    self._sample(call)
                yield event

    def _sample(self, call: Call) -> None:
        if self._rng.random() < self._sampling.share and self._sampling.wanted(call):
            self._waiting.append(call)
            self._arrived.set()

    async def run(self) -> None:
        """Labels what is waiting, one at a time, for ever. Cancel it to stop."""
        while True:
            await self._arrived.wait()
            if not self._is_idle():
                await asyncio.sleep(IDLE_CHECK_S)
                continue
            call = self._waiting.popleft()
            if not self._waiting:
                self._arrived.clear()
            row = await self._label(call)
            if row is not None:
                self._keep(row)

    async def _label(self, call: Call) -> str | None:
        """None where a model failed or nobody can tell who was right: such a row is dropped."""
        asked = replace(call, n=1, logprobs=True)
        try:
            small, large = [
                await _whole(answerer, replace(asked, model=name)) for name, answerer in self._sides
            ]
        except AnswerError:
            return None
        grades = await self._grade(call, small.text, large.text)
        return None if grades is None else write_label(call, small, large, grades)


async def _whole(answerer: Answerer, call: Call) -> Answered:
    hold = Hold(1, None)
    answer = answerer(call, Trail("shadow", tenant="shadow", share=SHARE))
    async with aclosing(answer):
        async for event in answer:
            hold.add(event)
    (answered,) = hold.answers()
    return answered


def write_label(call: Call, small: Answered, large: Answered, grades: Grades) -> str:
    """A row as labels.read_labels reads it."""
    row: dict[str, object] = {
        "small": {
            "score": grades.small,
            "text": small.text,
            "logprobs": [round(value, 4) for value in small.logprobs],
            "finish": small.finish,
        },
        "large": {"score": grades.large, "tokens": len(large.logprobs)},
    }
    if call.kind == "text":
        row["prompt"] = call.prompt
    else:
        row["messages"] = [{"role": m.role, "content": m.text} for m in call.messages]
        row |= {
            name: json.loads(value)
            for name, value in (("tools", call.tools), ("response_format", call.response_format))
            if value is not None
        }
    return json.dumps(row, ensure_ascii=False)
