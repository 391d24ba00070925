"""What a decision costs: its steps one by one, and all of it as the layer books it.

The last two rows are what `Server-Timing` says as `route` and `judge`: candidates, costs, standing,
features, the gain model, and the decision on the trail; then what was held back, its features and
the judge's model. The embedding is there already, as it is when the semantic cache was asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.cascade_scores import Table, fit_ours
from cascade.cascade import Cascade, Team
from cascade.features import before
from cascade.gain import GainModel
from cascade.judge import Answered, judge
from cascade.price import Price
from cascade.promise import Cut, Promise
from cascade.routes.learned import Quality, Scorer
from engine.contract import (
    Answer,
    Call,
    Delta,
    End,
    Finish,
    Message,
    Part,
    Start,
    TokenLogprob,
    Trail,
    Usage,
)

TIMES = 500
TOKENS = 120


def time_decisions(table: Table) -> dict[str, float]:
    """Milliseconds of each step of a decision, the median of 500, embedding not counted."""
    rows = np.arange(len(table.graded))
    rng = np.random.default_rng(0)
    route = fit_ours(table, rows, ("embedding", "before"), rng)
    both = fit_ours(table, rows, ("embedding", "before", "after"), np.random.default_rng(0))
    prompt, answer = table.graded.prompts[0], table.graded.answers[0]
    call = Call("chat", "auto", "bench", messages=(Message("user", (Part("text", prompt),)),))
    seen = Answered(answer, (-0.1,) * TOKENS, "stop")
    vector, cheap = table.embedding[0], table.before[0]
    verdict = judge(call, prompt, seen)
    inputs = {"embedding": vector, "before": cheap, "after": verdict.features}
    steps = {
        "route: features": _median_ms(lambda: before(call)),
        "route: gain model": _median_ms(lambda: route.estimate(inputs)),
        "judge: whole answer's features": _median_ms(lambda: judge(call, prompt, seen)),
        "judge: gain model": _median_ms(lambda: both.estimate(inputs)),
    }
    return steps | asyncio.run(_in_the_layer(call, answer, vector, (route, both)))


def _median_ms(step: Callable[[], object]) -> float:
    times = []
    for _ in range(TIMES):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return round(float(np.median(times)) * 1e3, 4)


@dataclass(frozen=True, slots=True)
class _Says:
    """A model that answers at once, with log-probabilities."""

    text: str

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        tokens = tuple(range(TOKENS))
        logprobs = tuple(TokenLogprob("x", b"x", -0.1) for _ in tokens)
        yield Start(trail.id, 1, call.model, call.model)
        yield Delta(0, "text", self.text, tokens, logprobs)
        yield Finish(0, "stop")
        yield End(Usage(100, TOKENS, 0, 100 + TOKENS))


async def _in_the_layer(
    call: Call, answer: str, vector: NDArray[np.float32], models: Sequence[GainModel]
) -> dict[str, float]:
    async def embed(_: Call) -> NDArray[np.float32]:
        return vector

    small = _Says(answer)
    prices = {"small": Price.per_mtok(0.1, 0.1), "large": Price.per_mtok(1, 1)}
    bold = Cut(10.0, True, 1000, 0.05, 0.0, 0.1)
    quality = Quality(Scorer(models[0], models[1], None), Promise(0.01), bold)
    layer = Cascade(
        {"small": small, "large": small}, quality, Team("small", "large", prices, embed=embed)
    )
    route_ms, judge_ms = [], []
    for _ in range(TIMES):
        trail = Trail("bench")
        async for _ in layer(call, trail):
            pass
        route_ms.append(trail.spans_ms["route"])
        judge_ms.append(trail.spans_ms["judge"])
    return {
        "route: all of it, as the layer books it": round(float(np.median(route_ms)), 4),
        "judge: all of it, as the layer books it": round(float(np.median(judge_ms)), 4),
    }
