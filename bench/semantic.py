"""How many hits a promised error buys, and whether the promise is kept.

    python -m bench.semantic --data FOLDER [--streams advising,banking77] [--seeds 100]

Every policy plays every stream (bench/semantic_streams.py) once per seed, from an empty cache.
Wrong means: served, and the answer was another question's. All shares are of all requests.

    hit, wrong     mean over seeds; `worst` the worst seed; `late` the second half of the stream
    window         the worst 2,000 requests in a row of a seed: mean and worst over seeds
    kept           share of seeds whose whole stream / whose every window stayed within max_error
    spent          wrong / max_error
    explored       answered by the model although a hit was allowed
    told           wrong among the hits as `p=` tells it, beside what was wrong of them
    ece            how far the two are apart, over ten classes of p, weighted by their hits

With `--runs FILE` a run that was cut off goes on where it stopped, and more seeds cost only those.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.semantic_fresh import FRESH, Arranged
from bench.semantic_lines import HEADER, Line, Runs, show, summarise, tally
from bench.semantic_picture import draw
from bench.semantic_replay import Pool, play
from bench.semantic_streams import STREAMS, Stream
from cache.verify import Policy
from cache.verify_budget import Budgeted, Terms
from cache.verify_others import Pooled, Static, VCache

ERRORS = (0.005, 0.01, 0.02, 0.05)

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


def names_of(policies: Sequence[str]) -> list[tuple[str, float]]:
    """(policy, max_error) of every line; 0 for those that promise nothing."""
    return [
        pair
        for name in policies
        for pair in (
            [(fixed, 0.0) for fixed in FIXED]
            if name == "static"
            else [(name, error) for error in ERRORS]
        )
    ]


def policy_of(name: str, error: float, seed: int) -> Policy:
    return FIXED[name]() if name in FIXED else POLICIES[name](error, random.Random(seed))


def measure(
    stream: Stream | Arranged, embeddings: Path, policies: Sequence[str], seeds: int, runs: Runs
) -> list[Line]:
    """Every policy at every error on one stream; what `runs` holds is not played again."""
    pool: Pool | None = None
    for seed in range(seeds):
        order = None
        for name, error in names_of(policies):
            family = name.split(" ")[0]
            if seed >= SEEDS_OF.get(family, seeds) or runs.has(stream.name, name, error, seed):
                continue
            if pool is None:
                pool = Pool(stream.questions(), embeddings)
            if order is None:
                order = stream.draw(seed)
            played = play(pool, order, policy_of(name, error, seed))
            runs.add(tally(played, stream.name, name, error, seed))
    lines = []
    for name, error in names_of(policies):
        lines.append(summarise(runs.of(stream.name, name, error, seeds)))
        print(show(lines[-1]), flush=True)
    return lines


def named(names: Sequence[str], data: Path) -> list[Stream | Arranged]:
    """The streams called `names`, read from the folder `data`; "all" and "fresh" are many."""
    groups = {"all": [*STREAMS], "fresh": [*FRESH]}
    wanted = [one for name in names for one in groups.get(name, [name])]
    unknown = [name for name in wanted if name not in {**STREAMS, **FRESH}]
    if unknown:
        raise SystemExit(f"no such streams: {', '.join(unknown)}; --help lists them")
    return [{**STREAMS, **FRESH}[name](data) for name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument(
        "--streams", default="all", help=f"of {', '.join([*STREAMS, *FRESH])}, all, fresh"
    )
    parser.add_argument(
        "--policies", default="ours,pooled,vcache,static", help="of these (the default: all)"
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument(
        "--runs", type=Path, help="where each run is kept; those there are not played"
    )
    parser.add_argument("--plot", type=Path, help="where to save hit against error as an image")
    scratch = Path(tempfile.gettempdir()) / "sluice-embeddings"
    parser.add_argument("--embeddings", type=Path, default=scratch)
    given = parser.parse_args()
    given.embeddings.mkdir(parents=True, exist_ok=True)
    print(HEADER)
    lines: list[Line] = []
    runs, policies = Runs(given.runs), given.policies.split(",")
    for stream in named(given.streams.split(","), given.data):
        lines += measure(stream, given.embeddings, policies, given.seeds, runs)
    if given.plot:
        draw(lines, given.plot)


if __name__ == "__main__":
    main()
