"""A run in a few numbers, kept on disk, and many of them as one line of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.semantic_replay import EXPLORE, SERVE, Played

WINDOW = 2000
CLASSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Between the classes of what was told of a hit: its probability of being wrong."""


class Run(msgspec.Struct, frozen=True):
    """One seed. Counts of requests, but for `told` and `off`: sums over the hits of what was told
    of them (the probability of being wrong) and of its squared distance from the truth."""

    stream: str
    policy: str
    max_error: float
    seed: int
    requests: int
    served: int
    explored: int
    wrong: int
    wrong_late: int
    window: int
    told: float
    off: float
    by_class: list[tuple[int, float, int]]
    """Hits of each class, what was told of them, and how many were wrong."""


def worst_window(wrong: NDArray[np.bool_], length: int = WINDOW) -> int:
    """The most wrong hits in `length` requests in a row; all of a shorter stream."""
    sums = np.concatenate([[0], np.cumsum(wrong)])
    return int((sums[length:] - sums[:-length]).max()) if len(wrong) > length else int(sums[-1])


def tally(played: Played, stream: str, policy: str, max_error: float, seed: int) -> Run:
    served = played.action == SERVE
    wrong, half = played.wrong_hits, len(served) // 2
    told, truth = 1.0 - played.told[served].astype(np.float64), played.wrong[served]
    classes = np.searchsorted(CLASSES, told)
    return Run(
        stream=stream,
        policy=policy,
        max_error=max_error,
        seed=seed,
        requests=len(served),
        served=int(served.sum()),
        explored=int((played.action == EXPLORE).sum()),
        wrong=int(wrong.sum()),
        wrong_late=int(wrong[half:].sum()),
        window=worst_window(wrong),
        told=float(np.nansum(told)),
        off=float(np.nansum((told - truth) ** 2)),
        by_class=[
            (
                int((classes == at).sum()),
                float(told[classes == at].sum()),
                int(truth[classes == at].sum()),
            )
            for at in range(len(CLASSES) + 1)
        ]
        if policy.startswith("ours")
        else [],
    )


class Runs:
    """Every run so far, and a file with one JSON object a line if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[tuple[str, str, float, int], Run] = {}
        if path is not None and path.exists():
            for line in path.read_bytes().splitlines():
                self._take(msgspec.json.decode(line, type=Run))

    def _take(self, run: Run) -> None:
        self._known[run.stream, run.policy, run.max_error, run.seed] = run

    def has(self, stream: str, policy: str, max_error: float, seed: int) -> bool:
        return (stream, policy, max_error, seed) in self._known

    def add(self, run: Run) -> None:
        self._take(run)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(run) + b"\n")

    def of(self, stream: str, policy: str, max_error: float, seeds: int) -> list[Run]:
        keys = ((stream, policy, max_error, seed) for seed in range(seeds))
        return [self._known[key] for key in keys if key in self._known]

    def lines(self) -> list[Line]:
        """All that was run, one line for each stream, policy and error."""
        sorts: dict[tuple[str, str, float], list[Run]] = {}
        for (stream, policy, error, _), run in self._known.items():
            sorts.setdefault((stream, policy, error), []).append(run)
        return [summarise(runs) for runs in sorts.values()]


@dataclass(frozen=True, slots=True)
class Line:
    """One policy on one stream; shares in percent of all requests, but `told`, `truth` and `ece`:
    of the hits."""

    stream: str
    policy: str
    max_error: float
    seeds: int
    hit: float
    wrong: float
    wrong_worst: float
    wrong_late: float
    window: float
    window_worst: float
    kept: float
    kept_windows: float
    explored: float
    told: float
    truth: float
    ece: float


def summarise(runs: Sequence[Run]) -> Line:
    """`runs` of one policy at one error on one stream, at least one."""
    total = np.array([run.requests for run in runs])
    wrong = np.array([run.wrong for run in runs]) / total
    late = np.array([run.wrong_late / (run.requests - run.requests // 2) for run in runs])
    windows = np.array([run.window for run in runs]) / WINDOW
    first, slack = runs[0], 1e-12
    hits = max(1, sum(run.served for run in runs))
    return Line(
        stream=first.stream,
        policy=first.policy,
        max_error=first.max_error,
        seeds=len(runs),
        hit=float(100 * np.mean([run.served / run.requests for run in runs])),
        wrong=float(100 * wrong.mean()),
        wrong_worst=float(100 * wrong.max()),
        wrong_late=float(100 * late.mean()),
        window=float(100 * windows.mean()),
        window_worst=float(100 * windows.max()),
        kept=float(np.mean(wrong <= first.max_error + slack)),
        kept_windows=float(np.mean(windows <= first.max_error + slack)),
        explored=float(100 * np.mean([run.explored / run.requests for run in runs])),
        told=100 * sum(run.told for run in runs) / hits,
        truth=100 * sum(run.wrong for run in runs) / hits,
        ece=100 * sum(map(abs, _gaps(runs))) / hits,
    )


def _gaps(runs: Sequence[Run]) -> list[float]:
    """By class: wrong hits told minus wrong hits."""
    classes = zip(*(run.by_class for run in runs), strict=True)
    return [sum(told - wrong for _, told, wrong in each) for each in classes]


HEADER = (
    "stream     policy              error seeds   hit  wrong  worst   late  window  worst  kept "
    "w.kept spent  expl.  told true  ece"
)


def show(line: Line) -> str:
    promise = f"{line.max_error:5.3f}" if line.max_error else "    -"
    spent = f"{line.wrong / line.max_error:4.0f}%" if line.max_error else "   - "
    kept = f"{line.kept:5.0%} {line.kept_windows:6.0%}" if line.max_error else "    -      -"
    told = f"{line.told:5.2f} {line.truth:4.2f} {line.ece:4.2f}" if line.ece else ""
    return (
        f"{line.stream:11s}{line.policy:20s}{promise} {line.seeds:5d} {line.hit:5.1f} "
        f"{line.wrong:6.2f} {line.wrong_worst:6.2f} {line.wrong_late:6.2f} {line.window:7.2f} "
        f"{line.window_worst:6.2f} {kept} {spent} {line.explored:6.1f} {told}"
    ).rstrip()
