"""Made-up traffic with labels: code is hard for the small model, and unsure answers are wrong."""

from __future__ import annotations

import numpy as np

from cascade.judge import Answered
from cascade.labels import Labelled
from tests.support.routing import chat


def labelled(n: int, seed: int = 0, *, text: bool = True, turns: int = 1) -> list[Labelled]:
    """Large is right nine times in ten; small as often on plain questions and three in ten on
    code, where its log-probabilities tell right from wrong to a degree."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        code = rng.random() < 0.4
        small = float(rng.random() < (0.3 if code else 0.9))
        large = float(rng.random() < 0.9)
        sure = rng.normal(-0.1 if small else -0.6, 0.2)
        logprobs = tuple(float(min(0.0, sure + noise)) for noise in rng.normal(0, 0.05, 20))
        answer = Answered(f"The answer is {number}.", logprobs, "stop") if text else None
        asked = f"Mend number {number}: ```x```" if code else f"What is number {number}?"
        rows.append(Labelled(chat(asked), small, large, answer, f"c{number // turns}"))
    return rows
