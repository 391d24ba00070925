"""When is a near neighbour good enough? The question, and what every answer to it looks like.

Problem. A semantic cache answers one question with the answer to another. Whether that is right
depends on traffic: the cosine above which 2 % of all requests are answered wrongly was .70 on one
set of questions and .97 on another (measured), so a threshold is no interface. What an operator
can mean is an error rate: `max_error`, wrong hits over all requests of a namespace.

Choice. A policy sees a `Sighting` (the nearest answers and how they differ from what is asked) and
gives a `Verdict`: serve, explore (answer by the model although a hit would have been allowed, so
that the truth about it is learnt) or forward. When the model's answer is there, the policy is told
whether the cached one would have been right. Policies are plain synchronous classes without I/O;
the layer (cache/semantic.py) and the simulator (bench/semantic.py) drive the same code.

    Budgeted   ours, keeps a promise        cache/verify_budget.py
    Static     a fixed threshold            cache/verify_others.py, for comparison
    VCache     per-entry thresholds         cache/verify_others.py, for comparison
    Pooled     one learned threshold        cache/verify_others.py, for comparison
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cache.verify_facts import FEATURES, vetoed

Floats = NDArray[np.float64]

NEAREST = 8
"""How many neighbours a sighting looks at."""

VOTE_WIDTH = 0.05
"""A neighbour whose cosine is this much lower has 1/e of the say."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One kept question. Those that proved to have the same answer share a `group`."""

    key: int
    group: int
    similarity: float
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """How often the answer of one group was checked, and what came out."""

    right: int = 0
    wrong: int = 0


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known about a possible hit. `signs` is described by SIGNS; `guarded` is the veto of
    the fixed guards, which only the policies of others use."""

    key: int
    group: int
    similarity: float
    guarded: bool
    signs: Floats


@dataclass(frozen=True, slots=True)
class Verdict:
    """`p_right`: how likely the cached answer is right. `chance`: the probability with which this
    request would have been forwarded and so labelled, 1 unless it could have been served. `told` is
    what people are told of `p_right`: corrected by how often the labels proved it wrong."""

    action: Literal["serve", "explore", "forward"]
    p_right: float
    chance: float
    reason: str
    told: float = math.nan


class Policy(Protocol):
    keeps_twins: bool
    """Whether a question whose cached answer proved right is kept as another key of that answer."""

    def decide(self, sighting: Sighting) -> Verdict: ...

    def learn(self, sighting: Sighting, verdict: Verdict, /, *, right: bool) -> None: ...

    def skip(self) -> None:
        """A request of the namespace came by without any neighbour."""

    def forget(self, key: int) -> None:
        """A kept question is gone."""

    def follow(self, max_error: float) -> None:
        """What is promised from now on, if this policy promises anything."""


SIGNS = (
    "one", "cosine", "above .8", "above .9", "vote", "margin", "second", "share", "crowd",
    "proven", "refuted", "age", *FEATURES,
)  # fmt: skip

PAIR_FROM = len(SIGNS) - len(FEATURES)
"""Where the signs of the pair of texts begin: all 0 means that the two have the same words."""


def sight(near: Sequence[Neighbour], pair: tuple[float, ...], record: Record) -> Sighting:
    """Describe the possible hit on `near[0]`; `near` is sorted, most similar first, never empty.
    `pair` is what `compare` says of the question asked and that of `near[0]`.

    Beyond the pair itself, the *neighbourhood* tells most: when the eight nearest questions all
    have one answer, the ninth has it too, and when they disagree, the nearest is a coin toss. At
    1 % wrong this doubled the hits of any threshold on the cosine (banking77: 30 to 60 %)."""
    top = near[0]
    cosine = top.similarity
    says = [math.exp((neighbour.similarity - cosine) / VOTE_WIDTH) for neighbour in near]
    agreeing = [neighbour.group == top.group for neighbour in near]
    others = [n.similarity for n, agrees in zip(near, agreeing, strict=True) if not agrees]
    twins = [n.similarity for n, agrees in zip(near, agreeing, strict=True) if agrees]
    rival = others[0] if others else near[-1].similarity if len(near) > 1 else cosine - 0.2
    vote = sum(say for say, agrees in zip(says, agreeing, strict=True) if agrees) / sum(says)
    signs = np.array(
        (
            1.0,
            (cosine - 0.8) * 5,
            max(0.0, cosine - 0.8) * 5,
            max(0.0, cosine - 0.9) * 10,
            vote,
            min(0.4, cosine - rival) * 5,
            twins[1] if len(twins) > 1 else 0.0,
            len(twins) / len(near),
            sum(n.similarity > cosine - 0.1 for n in near) / NEAREST,
            math.log1p(record.right) / 3,
            math.log1p(record.wrong) / 3,
            math.log1p(top.age_s) / 15,
            *pair,
        )
    )
    return Sighting(top.key, top.group, cosine, vetoed(pair), signs)
