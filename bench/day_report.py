"""What two replays of one day say when they are laid beside each other (bench/day.py).

All sums are in answer tokens that the large model generated for the same request on the day without
savings, so that techniques, oracles and the whole are in one unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.day_traffic import Visit
from demo.tasks import check
from engine.contract import Usage

RESAMPLES = 2000
TECHNIQUES = {"exact": "exact", "joined": "join", "semantic": "semantic", "small": "cascade"}
"""The technique that an answer's origin stands for. What the large model answered is none."""


@dataclass(frozen=True, slots=True)
class Said:
    """One answer. `visit` counts visits, `turn` their turns, `copy` those of a burst."""

    visit: int
    turn: int
    copy: int
    text: str
    origin: str
    model: str
    usage: Usage
    seconds: float

    @property
    def completion_tokens(self) -> int:
        return self.usage.completion_tokens

    @property
    def place(self) -> tuple[int, int, int]:
        return self.visit, self.turn, self.copy


@dataclass(frozen=True, slots=True)
class Share:
    """A mean with its 95 % interval, both in percent, and of how many."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} % ({self.low:.1f} to {self.high:.1f}, n = {self.count:,})"


def share(values: Sequence[float], visits: Sequence[int], seed: int = 0) -> Share:
    """Bootstrapped over visits: copies and turns of one visit are not independent."""
    if not values:
        return Share(float("nan"), float("nan"), float("nan"), 0)
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for value, visit in zip(values, visits, strict=True):
        sums[visit][0] += value
        sums[visit][1] += 1
    table: NDArray[np.float64] = np.array(list(sums.values()))
    rng = np.random.default_rng(seed)
    drawn = table[rng.integers(0, len(table), (RESAMPLES, len(table)))].sum(axis=1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    total = table.sum(axis=0)
    return Share(100 * total[0] / total[1], 100 * low, 100 * high, len(values))


# ------------------------------------------------------------------ what could have been avoided


def oracles(
    visits: Sequence[Visit],
    off: Sequence[Said],
    small: Mapping[str, str],
    earlier: Sequence[Visit] = (),
) -> dict[str, int]:
    """What each technique could have avoided: repeats (in flight or stored, so exact and join
    together), then meanings that were asked before, then tasks that `small` (question → its answer)
    gets right; each of what those before it leave. Chats count for repeats alone. `earlier`: the
    visits of the days before."""
    sums = {"exact + join": 0, "semantic": 0, "cascade": 0}
    asked = {
        (visit.tenant, *visit.turns[: turn + 1])
        for visit in earlier
        for turn in range(len(visit.turns))
    }
    known = {visit.meaning for visit in earlier if visit.meaning is not None}
    by_arrival = sorted(off, key=lambda said: (visits[said.visit].at, said.place))
    for said in by_arrival:
        visit = visits[said.visit]
        words = (visit.tenant, *visit.turns[: said.turn + 1])
        if words in asked:
            sums["exact + join"] += said.completion_tokens
        elif visit.meaning in known and visit.meaning is not None:
            sums["semantic"] += said.completion_tokens
        elif visit.answer is not None and check(small[visit.turns[0]], visit.answer):
            sums["cascade"] += said.completion_tokens
        asked.add(words)
        if visit.meaning is not None:
            known.add(visit.meaning)
    return sums


# --------------------------------------------------------------------------- what was lost


@dataclass(frozen=True, slots=True)
class Losses:
    """In points of the answers that can be checked."""

    tasks_on: Share
    tasks_off: Share
    tasks_lost: Share
    wrong_of_hits: Share
    wrong_of_questions: Share
    lost: Share
    """Over tasks and questions together: right without savings, wrong with them."""


def losses(visits: Sequence[Visit], on: Sequence[Said], off: Sequence[Said]) -> Losses:
    plain = {said.place: said for said in off}
    right = _right_hits(visits, on)
    tasks = [said for said in on if visits[said.visit].answer is not None]
    questions = [said for said in on if visits[said.visit].meaning is not None]
    hits = [said for said in questions if said.origin == "semantic"]

    def graded(said: Said) -> bool:
        answer = visits[said.visit].answer
        assert answer is not None
        return check(said.text, answer)

    def lost(said: Said) -> float:
        if visits[said.visit].answer is not None:
            return float(graded(plain[said.place])) - float(graded(said))
        return float(not right.get(said.place, True))

    def over(some: Sequence[Said], value: Callable[[Said], float]) -> Share:
        return share([value(said) for said in some], [said.visit for said in some])

    return Losses(
        tasks_on=over(tasks, graded),
        tasks_off=over(tasks, lambda said: graded(plain[said.place])),
        tasks_lost=over(tasks, lost),
        wrong_of_hits=over(hits, lost),
        wrong_of_questions=over(questions, lost),
        lost=over([*tasks, *questions], lost),
    )


def _right_hits(visits: Sequence[Visit], on: Sequence[Said]) -> dict[tuple[int, int, int], bool]:
    """Whether a semantic hit's text was ever given, by a model, to a question of that meaning."""
    made: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for said in on:
        meaning = visits[said.visit].meaning
        if meaning is not None and said.origin != "semantic":
            made[said.text].add(meaning)
    return {
        said.place: visits[said.visit].meaning in made[said.text]
        for said in on
        if said.origin == "semantic"
    }
