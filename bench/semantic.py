"""How many hits a promised error buys, and whether the promise is kept.

    python -m bench.semantic --data FOLDER [--streams advising,banking77] [--seeds 100]

Every policy plays every stream (bench/semantic_streams.py) once per seed, from an empty cache.
Wrong means: served, and the answer was another question's. All shares are of all requests.

    hit, wrong     mean over seeds; `worst` the worst seed; `late` the second half of the stream
    window         the worst 2,000 requests in a row of a seed: mean and worst over seeds
    kept           share of seeds whose whole stream / whose every window stayed within max_error
    spent          wrong / max_error
    explored       answered by the model although a hit was allowed
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.semantic_fresh import FRESH, Arranged
from bench.semantic_replay import EXPLORE, SERVE, Played, Pool, play
from bench.semantic_streams import STREAMS, Stream
from cache.verify import Policy
from cache.verify_budget import Budgeted, Terms
from cache.verify_others import Pooled, Static, VCache

ERRORS = (0.005, 0.01, 0.02, 0.05)
WINDOW = 2000

POLICIES: dict[str, Callable[[float, random.Random], Policy]] = {
    "ours": lambda error, rng: Budgeted(Terms(error), rng),
    "pooled": Pooled,
    "vcache": VCache,
}

FIXED: dict[str, Callable[[], Policy]] = {
    "static .80": lambda: Static(0.80),
    "static .90": lambda: Static(0.90),
    "static .95": lambda: Static(0.95),
    "static .80 + guards": lambda: Static(0.80, guards=True),
    "static .90 + guards": lambda: Static(0.90, guards=True),
}

SEEDS_OF = {"vcache": 10, "static": 10}
"""Policies that need no hundred seeds: one costs ten times the others, the others have no chance
in them but the order of the stream."""


@dataclass(frozen=True, slots=True)
class Line:
    """One policy on one stream; shares in percent of all requests."""

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


def worst_window(wrong: NDArray[np.bool_], length: int = WINDOW) -> int:
    """The most wrong hits in `length` requests in a row; all of a shorter stream."""
    sums = np.concatenate([[0], np.cumsum(wrong)])
    return int((sums[length:] - sums[:-length]).max()) if len(wrong) > length else int(sums[-1])


def summarise(stream: str, policy: str, max_error: float, runs: Sequence[Played]) -> Line:
    wrong = np.array([run.wrong_hits.mean() for run in runs])
    late = np.array([run.wrong_hits[len(run.wrong) // 2 :].mean() for run in runs])
    windows = np.array([worst_window(run.wrong_hits) / WINDOW for run in runs])
    slack = 1e-12
    return Line(
        stream=stream,
        policy=policy,
        max_error=max_error,
        seeds=len(runs),
        hit=float(100 * np.mean([(run.action == SERVE).mean() for run in runs])),
        wrong=float(100 * wrong.mean()),
        wrong_worst=float(100 * wrong.max()),
        wrong_late=float(100 * late.mean()),
        window=float(100 * windows.mean()),
        window_worst=float(100 * windows.max()),
        kept=float(np.mean(wrong <= max_error + slack)),
        kept_windows=float(np.mean(windows <= max_error + slack)),
        explored=float(100 * np.mean([(run.action == EXPLORE).mean() for run in runs])),
    )


def show(line: Line) -> str:
    promise = f"{line.max_error:5.3f}" if line.max_error else "    -"
    spent = f"{line.wrong / line.max_error:4.0f}%" if line.max_error else "   - "
    kept = f"{line.kept:5.0%} {line.kept_windows:5.0%}" if line.max_error else "    -     -"
    return (
        f"{line.stream:11s}{line.policy:20s}{promise} {line.hit:6.1f} {line.wrong:6.2f} "
        f"{line.wrong_worst:6.2f} {line.wrong_late:6.2f} {line.window:7.2f} "
        f"{line.window_worst:6.2f} {kept} {spent} {line.explored:6.1f}"
    )


HEADER = (
    "stream     policy              error    hit  wrong  worst   late  window  worst  kept  w.kept "
    "spent  expl."
)


def measure(
    stream: Stream | Arranged, pool: Pool, policies: Sequence[str], seeds: int
) -> list[Line]:
    """Every policy at every error on one stream."""
    orders = [stream.draw(seed) for seed in range(seeds)]
    lines = []
    for name in policies:
        count = min(seeds, SEEDS_OF.get(name, seeds))
        if name == "static":
            for fixed, make in FIXED.items():
                runs = [play(pool, order, make()) for order in orders[:count]]
                lines.append(summarise(stream.name, fixed, 0.0, runs))
                print(show(lines[-1]), flush=True)
            continue
        for error in ERRORS:
            make_for = POLICIES[name]
            runs = [
                play(pool, order, make_for(error, random.Random(seed)))
                for seed, order in enumerate(orders[:count])
            ]
            lines.append(summarise(stream.name, name, error, runs))
            print(show(lines[-1]), flush=True)
    return lines


def plot(lines: Sequence[Line], path: Path) -> None:
    """Hit rate against error, one panel a stream."""
    import matplotlib as mpl  # an extra, for this picture only

    mpl.use("Agg")
    from matplotlib import pyplot

    streams = list(dict.fromkeys(line.stream for line in lines))
    figure, axes = pyplot.subplots(
        1, len(streams), figsize=(4 * len(streams), 3.6), squeeze=False, layout="constrained"
    )
    for axis, stream in zip(axes[0], streams, strict=True):
        for family in ("ours", "pooled", "vcache", "static"):
            points = [
                (line.wrong, line.hit)
                for line in lines
                if line.stream == stream and line.policy.startswith(family)
            ]
            if points:
                axis.plot(*zip(*sorted(points), strict=True), "o-", label=family, markersize=4)
        axis.set_title(stream)
        axis.set_xscale("symlog", linthresh=0.05)
        axis.set_xlabel("wrong hits, % of requests")
    axes[0][0].set_ylabel("hits, % of requests")
    axes[0][0].legend()
    figure.savefig(path)


def named(names: Sequence[str], data: Path) -> list[Stream | Arranged]:
    """The streams called `names`, read from the folder `data`; "all" and "fresh" are many."""
    groups = {"all": [*STREAMS], "fresh": [*FRESH]}
    wanted = [one for name in names for one in groups.get(name, [name])]
    return [{**STREAMS, **FRESH}[name](data) for name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument(
        "--streams", default="all", help=f"of {', '.join([*STREAMS, *FRESH])}, all, fresh"
    )
    parser.add_argument("--policies", default="ours,pooled,vcache,static")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", type=Path, help="where to save the numbers as JSON")
    parser.add_argument("--plot", type=Path, help="where to save hit against error as an image")
    scratch = Path(tempfile.gettempdir()) / "sluice-embeddings"
    parser.add_argument("--embeddings", type=Path, default=scratch)
    given = parser.parse_args()
    given.embeddings.mkdir(parents=True, exist_ok=True)
    print(HEADER)
    lines: list[Line] = []
    started = time.monotonic()
    for stream in named(given.streams.split(","), given.data):
        pool = Pool(stream.questions(), given.embeddings)
        lines += measure(stream, pool, given.policies.split(","), given.seeds)
        if given.out:
            rows = [asdict(line) for line in lines]
            given.out.write_text(json.dumps({"window": WINDOW, "lines": rows}, indent=1))
    print(f"{time.monotonic() - started:.0f} s")
    if given.plot:
        plot(lines, given.plot)


if __name__ == "__main__":
    main()
