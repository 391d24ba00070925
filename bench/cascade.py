"""Does the cascade choose well, does it keep its promise, and what does a decision cost?

    python -m bench.cascade DATA [--tasks FILE [--fresh FILE]] [--seeds 20] [--embeddings FOLDER]

DATA holds RouteLLM's published outcomes (GPT-4-1106 and Mixtral-8x7B on MMLU and GSM8K). Four
parts: the table of routers over both halves of each random split; the promise, by 200 calibrations
at each n; the cost of a decision; and, with --tasks, the bundled models end to end, from stored
answers with their log-probabilities (bench/cascade_tasks.py says in what form). Prints tables and
saves them as JSON. Run it with one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import cascade_scores as routers
from bench.cascade_cost import time_decisions
from bench.cascade_data import Graded, embed, gsm8k, mmlu
from bench.cascade_promise import WAYS, population, run_way
from bench.cascade_scores import Grades, Scorer, Table, grade
from bench.cascade_tasks import run_tasks
from cascade.promise import Promise

ANSWER_MARKS = ("sums_right", "sums_wrong", "any_sum_wrong")

MMLU: Mapping[str, tuple[Scorer, str]] = {
    "random": (routers.random, ".499 / 50.2 / 80.0"),
    "prompt length": (routers.length, ".583 / 36.7 / 69.5"),
    "task mean (told the subject)": (routers.task_mean, ".664 / 27.9 / 60.2"),
    "logistic regression on gain": (routers.logistic, ".651 / 30.4 / 61.5"),
    "kNN": (routers.neighbours, ".660 / 29.4 / 59.6"),
    "ours": (routers.ours("embedding", "before"), "goal .67"),
    "oracle": (routers.oracle, "1.268 / 6.2 / 10.0"),
}
GSM8K: Mapping[str, tuple[Scorer, str]] = {
    "random": (routers.random, ".500 / 49.7 / 79.5"),
    "prompt length": (routers.length, ".597 / 37.0 / 66.4"),
    "logistic regression on gain": (routers.logistic, ".607 / 37.6 / 65.2"),
    "kNN": (routers.neighbours, ".597 / 38.1 / 66.4"),
    "ours, before token 1": (routers.ours("embedding", "before"), ".642 / 33.3 / 59.6 (their LR)"),
    "ours + judge": (routers.ours("embedding", "before", "after"), "goal .67"),
    "ours + judge, sums not checked": (
        routers.without(routers.ours("embedding", "before", "after"), *ANSWER_MARKS),
        "",
    ),
    "ours + judge + answer's embedding": (
        routers.ours("embedding", "before", "after", "answer"),
        ".662 / 29.4 / 57.8",
    ),
    "oracle": (routers.oracle, "1.115 / 11.0 / 17.6"),
}
FEW: Mapping[str, tuple[Scorer, str]] = {
    name: (MMLU[name][0], goal)
    for name, goal in (
        ("task mean (told the subject)", ""),
        ("logistic regression on gain", ".623"),
        ("kNN", ""),
        ("ours", "goal .64"),
    )
}


def table_of(graded: Graded, folder: Path) -> Table:
    answer = embed(graded.answers, folder) if graded.answers else None
    return Table(graded, embed(graded.prompts, folder), answer)


def compare(
    table: Table, scorers: Mapping[str, tuple[Scorer, str]], seeds: int, labels: int | None
) -> list[dict[str, Any]]:
    """Each random split is used both ways; `labels` limits what the routers are fitted on."""
    results: dict[str, list[Grades]] = {name: [] for name in scorers}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(table.graded))
        halves = np.array_split(order, 2)
        for fit, rows in (halves, halves[::-1]):
            for name, (scorer, _) in scorers.items():
                rng = np.random.default_rng(seed)
                scores = scorer(table, fit[:labels], rows, rng)
                results[name].append(grade(scores, table.gain[rows]))
    return [_row(name, grades, scorers[name][1]) for name, grades in results.items()]


def _row(name: str, grades: list[Grades], beside: str) -> dict[str, Any]:
    apgr = np.array([g.apgr for g in grades])
    return {
        "router": name,
        "apgr": round(float(apgr.mean()), 3),
        "apgr_sd": round(float(apgr.std(ddof=1)), 3),
        "cpt50": round(float(np.mean([g.cpt50 for g in grades])), 1),
        "cpt80": round(float(np.mean([g.cpt80 for g in grades])), 1),
        "beside": beside,
    }


def print_routers(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n{'':38}{'APGR':>14}{'CPT50':>8}{'CPT80':>8}   known before, or goal")
    for row in rows:
        spread = f"{row['apgr']:.3f} ± {row['apgr_sd']:.3f}"
        print(f"{row['router']:38}{spread:>14}{row['cpt50']:8}{row['cpt80']:8}   {row['beside']}")


def check_promise(table: Table, promise: Promise, runs: int, splits: int) -> list[dict[str, Any]]:
    people = []
    for seed in range(splits):
        order = np.random.default_rng(1000 + seed).permutation(len(table.graded))
        fit, rest = np.array_split(order, 2)
        people.append(population(table, fit, rest, promise.epsilon, seed))
    rows = []
    for n in (200, 500, 1000, 2000, 4000):
        outcomes = {name: run_way(way, people, n, promise, runs) for name, way in WAYS.items()}
        base = outcomes["plug-in"].large_share
        for name, outcome in outcomes.items():
            cost = 100 * (outcome.large_share - base)
            rows.append(
                {
                    "n": n,
                    "way": name,
                    "missed": outcome.missed,
                    "large_share": round(outcome.large_share, 3),
                    "cost_points": round(cost, 1),
                }
            )
    return rows


def print_promise(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n{'n':>6}  {'':40}{'missed':>8}{'large':>8}{'points more than plug-in':>26}")
    for row in rows:
        line = f"{row['n']:6}  {row['way']:40}{row['missed']:8.1%}{row['large_share']:8.1%}"
        print(f"{line}{row['cost_points']:26}")


def main() -> None:
    arguments = _arguments()
    found: dict[str, Any] = {}
    math = table_of(gsm8k(arguments.data), arguments.embeddings)
    found["decision_ms"] = time_decisions(math)
    print("\nA decision, median ms (goals: route ≤ 0.3 beyond the embedding, judge ≤ 0.1)")
    for step, ms in found["decision_ms"].items():
        print(f"{step:38}{ms:8}")
    found["gsm8k"] = compare(math, GSM8K, arguments.seeds, None)
    print_routers(f"GSM8K, {len(math.graded)} questions", found["gsm8k"])
    table = table_of(mmlu(arguments.data), arguments.embeddings)
    found["mmlu"] = compare(table, MMLU, arguments.seeds, None)
    print_routers(f"MMLU, {len(table.graded)} questions", found["mmlu"])
    found["mmlu_1500"] = compare(table, FEW, arguments.seeds, 1500)
    print_routers("MMLU, fitted on 1,500 labels", found["mmlu_1500"])
    for epsilon in arguments.epsilons:
        promise = Promise(epsilon, 0.1)
        rows = check_promise(table, promise, arguments.calibrations, arguments.splits)
        found[f"promise_{epsilon}"] = rows
        title = (
            f"MMLU, lose at most {100 * epsilon:g} points, δ = 0.1, {arguments.calibrations} runs"
        )
        print_promise(title, rows)
    if arguments.tasks:
        found["tasks"] = run_tasks(arguments.tasks, arguments.embeddings)
        if arguments.fresh:
            found["fresh"] = run_tasks(arguments.tasks, arguments.embeddings, fresh=arguments.fresh)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"\nsaved to {arguments.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="folder with mmlu_responses/ and gsm8k/")
    parser.add_argument("--tasks", type=Path, help="graded tasks, answered by both bundled models")
    parser.add_argument("--fresh", type=Path, help="more of them: then the test part of all splits")
    parser.add_argument("--seeds", type=int, default=20, help="random splits, each used both ways")
    parser.add_argument("--calibrations", type=int, default=200)
    parser.add_argument("--splits", type=int, default=4, help="populations of the promise check")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.025])
    scratch = Path(tempfile.gettempdir())
    parser.add_argument("--embeddings", type=Path, default=scratch / "sluice-embeddings-cascade")
    parser.add_argument("--out", type=Path, default=Path("bench/results/cascade.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
