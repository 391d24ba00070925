"""Gain models, questions and verdicts for the tests of cascade/, without any fitting."""

from __future__ import annotations

from typing import Any

import numpy as np

from cascade.conversation import FIRST, Standing
from cascade.features import BEFORE, before
from cascade.gain import GainModel, make_block
from cascade.judge import AFTER, Answered, Verdict, after
from cascade.promise import Cut, Promise
from cascade.routes.base import Candidate, Question
from cascade.routes.learned import Quality, Scorer
from engine.contract import Call, Message, Part


def gain_of(feature: str, names: tuple[str, ...], block: str, weight: float = 1.0) -> GainModel:
    """A gain model that rises with one feature: near 0 (+weight/2) where it is 1, lower below.

    One landmark at feature = 1: the gain is weight × exp(−(x − 1)²) − weight / 2."""
    at = names.index(feature)
    scale = np.zeros(len(names), dtype=np.float32)
    scale[at] = 1.0
    landmark = np.zeros((1, len(names)), dtype=np.float32)
    landmark[0, at] = 1.0
    made = make_block(
        block,
        names,
        (np.zeros(len(names), dtype=np.float32), scale),
        gamma=4.0,
        landmarks=landmark,
        coefficients=np.array([[0.0, weight, 0.0]], dtype=np.float32),
    )
    return GainModel((made,), np.array([0.0, -weight / 2, 0.0]), labels=500)


CODE_GAINS = gain_of("code", BEFORE, "before")
"""The large model is better at code."""
UNSURE_GAINS = gain_of("cut_by_length", AFTER, "after")
"""The large model is better where the small one's answer was cut."""
CODE_CUT = Cut(0.1, True, 900, 0.05, 0.004, 0.4)
CODE_ROUTE = Quality(Scorer(CODE_GAINS), Promise(0.01), CODE_CUT)
"""Calibrated: code goes to the large model."""


def chat(*texts: str, **fields: Any) -> Call:
    """A conversation: user, assistant, user …"""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], (Part("text", t),)) for i, t in enumerate(texts))
    return Call(**{"kind": "chat", "model": "auto", "scope": "t", "messages": messages, **fields})


def question_of(
    call: Call,
    small_nano: int = 10,
    large_nano: int = 100,
    standing: Standing = FIRST,
    **inputs: np.ndarray,
) -> Question:
    return Question(
        call,
        Candidate("small", small_nano),
        Candidate("large", large_nano),
        standing,
        {"before": before(call), **inputs},
    )


def verdict_of(answer: Answered, broken: str = "") -> Verdict:
    return Verdict(broken, after("", answer))
