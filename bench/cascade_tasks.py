"""The bundled models end to end: large-model tokens avoided at no more than ε lost.

Reads what bench/cascade_answers.py stored. Each random split has three disjoint parts: 40 % fit,
20 % calibrate, 40 % test; all figures are from the test part, decided as the cascade would. A
router's cut is found twice on the calibration part: plug-in, and with the promise (δ = 0.1). The
rows `auto` are what `sluice calibrate` makes of the first two parts (it halves them itself), and
what a gateway then does: without the embedding, as the policy that comes with the bundled models,
with answers that are streamed and with answers that are not, under one promise for both.
With fresh tasks beside them, those are the test part of every split, and the others are cut two to
one: nobody has looked at them while features and plans were chosen.

"Tokens avoided" is the share of the large model's answer tokens that were never generated; what the
small model generates is not held against it there. `thrown away` is what it generated in vain, in
the same unit: tokens of escalated answers per token of the large model.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cascade_data import embed
from cascade.calibrate import Aim, calibrate_table, ways_of
from cascade.features import BEFORE, before
from cascade.fit import Plan, answer_plan, embedding_plan, feature_plan, fit_gain, out_of_fold
from cascade.gain import scores_of
from cascade.judge import AFTER, Verdict, after
from cascade.labels import Labelled, first_tokens, read_labels
from cascade.looks import Looks, Table, looks_of
from cascade.promise import Promise, choose_cut, cuts_worth_testing, plug_in_cut
from cascade.routes.base import Candidate, Question
from cascade.routes.cautious import Cautious
from engine.contract import Call
from gateway.settings import Cascade

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

AIM = Aim(Promise(0.01), Cascade().hold_tokens, Cascade().whole_tokens)
"""As a gateway that nobody configured."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """In rows. `tokens` are the large model's answer tokens."""

    small: Floats
    large: Floats
    tokens: Floats
    chars: Floats
    cells: NDArray[np.int64]
    inputs: Mapping[str, NDArray[Any]]
    table: Table
    """What `auto` looks at."""

    @property
    def losses(self) -> Floats:
        losses: Floats = self.large - self.small
        return losses


@dataclass(frozen=True, slots=True)
class Router:
    """Blocks of inputs that it looks at; `judges`: it has seen the small answer."""

    blocks: tuple[str, ...]
    judges: bool = False


ROUTERS: Mapping[str, Router] = {
    "ours before token 1": Router(("embedding", "before")),
    "ours + judge, whole answer": Router(("embedding", "before", "after"), True),
}


def _lines(path: Path) -> list[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [line for line in file if line.strip()]


def read_tasks(lines: Sequence[str], embeddings: Path) -> Tasks:
    rows, raw = read_labels(lines), [json.loads(line) for line in lines]
    cells = {name: at for at, name in enumerate(sorted({_cell(row) for row in raw}))}
    texts = [row.call.messages[-1].text for row in rows]
    inputs = {
        "embedding": embed(texts, embeddings),
        "before": np.array([before(row.call) for row in rows]),
        "after": _after(rows, None),
        "after_cautious": _after(rows, Cautious().hold_tokens),
    }
    return Tasks(
        np.array([row.small for row in rows]),
        np.array([row.large for row in rows]),
        np.array([float(row["large"]["tokens"]) for row in raw]),
        np.array([float(len(text)) for text in texts]),
        np.array([cells[_cell(row)] for row in raw]),
        inputs,
        Table.of(rows, AIM.view, None),
    )


def _cell(row: dict[str, Any]) -> str:
    return f"{row['family']} {row['level']}"


def _after(rows: Sequence[Labelled], tokens: int | None) -> Floats:
    seen = []
    for row in rows:
        assert row.answer is not None, "the small model's answers are what the judge is for"
        seen.append(after(row.call.messages[-1].text, first_tokens(row.answer, tokens)))
    return np.array(seen)


def _plans(router: Router) -> dict[str, Plan]:
    every = {
        "embedding": embedding_plan(384),
        "before": feature_plan(BEFORE),
        "after": answer_plan(AFTER),
    }
    return {name: every[name] for name in router.blocks}


@dataclass(frozen=True, slots=True)
class Point:
    lost: float
    avoided: float
    kept: float
    thrown: float = math.nan


def _at(tasks: Tasks, rows: Rows, kept: NDArray[np.bool_], spent: Floats | None = None) -> Point:
    """`spent` [rows]: the small model's tokens, kept or not."""
    tokens = tasks.tokens[rows]
    lost = float((tasks.losses[rows] * kept).mean())
    thrown = math.nan if spent is None else float((spent * ~kept).sum() / tokens.sum())
    return Point(lost, float((tokens * kept).sum() / tokens.sum()), float(kept.mean()), thrown)


def _split(tasks: Tasks, rng: np.random.Generator, fresh: int) -> tuple[Rows, Rows, Rows]:
    """`fresh`: how many of the last rows are the test part; 0: a random part is."""
    every = len(tasks.small)
    order = rng.permutation(every - fresh)
    if fresh:
        return order[: 2 * len(order) // 3], order[2 * len(order) // 3 :], np.arange(every)[-fresh:]
    fit, calibrate = int(0.4 * every), int(0.6 * every)
    return order[:fit], order[fit:calibrate], order[calibrate:]


def _fixed_scores(tasks: Tasks, fit: Rows, rng: np.random.Generator) -> dict[str, Floats]:
    """Scores of all rows by rules that need no model. The cell is the task's family and level."""
    means = np.full(int(tasks.cells.max()) + 1, tasks.losses[fit].mean())
    for cell in np.unique(tasks.cells[fit]):
        means[cell] = tasks.losses[fit][tasks.cells[fit] == cell].mean()
    return {
        "random": rng.random(len(tasks.small)),
        "prompt length": tasks.chars,
        "task mean (told family and level)": means[tasks.cells],
    }


def _our_scores(
    tasks: Tasks, fit: Rows, router: Router, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """(scores of all rows, out-of-fold scores of the fitting rows)."""
    inputs = {name: tasks.inputs[name] for name in router.blocks}
    seen = {name: values[fit] for name, values in inputs.items()}
    sides = (tasks.small[fit], tasks.large[fit])
    tokens = tasks.tokens[fit]
    model = fit_gain(seen, _plans(router), *sides, rng=rng, tokens=tokens)
    held = out_of_fold(seen, _plans(router), *sides, rng=rng, tokens=tokens)
    return scores_of(model.estimate_many(inputs)), scores_of(held)


def auto_points(tasks: Tasks, split: Split, epsilon: float) -> dict[str, Point]:
    """`sluice calibrate`, then each request as a gateway decides it."""
    labels = tasks.table.pick(np.concatenate([split.fit, split.calibrate]))
    found = calibrate_table(labels, replace(AIM, promise=Promise(epsilon)))
    route = found.route
    assert route.whole is not None, "the tasks' answers are there"
    names = ("auto, streamed", "auto, not streamed")
    margins = (route.scorer.margin, route.whole.margin)
    earlies = (0.0, route.whole.early)
    looks, seen = (
        looks_of(route.scorer, table, rows)
        for table, rows in ((tasks.table, split.test), (labels, found.tested_on))
    )
    losses, points = labels.losses[found.tested_on], {}
    for at, cut in enumerate((route.cut, route.whole.cut)):
        scores, tested = (
            ways_of(one, route.scorer.margin, route.whole)[at] for one in (looks, seen)
        )
        loose = plug_in_cut(tested, losses, epsilon)
        for kind, threshold in (("plug-in", loose), ("promise", cut.threshold)):
            tried = looks.first - margins[at] <= threshold
            spent = tried * _spent(tasks, split.test, looks, threshold, earlies[at])
            kept = scores <= threshold
            points[f"{names[at]}, {kind}"] = _at(tasks, split.test, kept, spent)
    return points


def _spent(tasks: Tasks, rows: Rows, looks: Looks, cut: float, early: float) -> Floats:
    """Tokens of the small model for each of the rows, if it is tried."""
    assert looks.judged is not None, "the tasks' answers are there"
    said = np.minimum(tasks.table.said[rows], AIM.whole_tokens)
    given_up = looks.going & (looks.judged - early > cut)
    spent: Floats = np.where(given_up, AIM.hold_tokens or 0, said)
    return spent


def uncalibrated(tasks: Tasks, rows: Rows) -> Point:
    """What `auto` does before anybody calibrated it (routes/cautious.py)."""
    route, blank = Cautious(), Call("text", "auto", "bench")
    asked = Question(blank, Candidate("small", 1), Candidate("large", 10))
    kept = []
    for row in rows:
        tried = route.before(replace(asked, inputs={"before": tasks.inputs["before"][row]}))
        verdict = Verdict("", tasks.inputs["after_cautious"][row])
        kept.append(tried.judged and route.after(asked, (verdict,)).model == "small")
    return _at(tasks, rows, np.array(kept))


def _oracle(tasks: Tasks, rows: Rows, epsilon: float) -> Point:
    """Keeps all that loses nothing, then the losses that save most tokens, up to ε."""
    losses, tokens = tasks.losses[rows], tasks.tokens[rows]
    kept = losses <= 0
    budget = round(epsilon * len(rows) - losses[kept].sum())
    worse = np.flatnonzero(~kept)
    kept[worse[np.argsort(-tokens[worse])][: max(0, budget)]] = True
    return _at(tasks, rows, kept)


@dataclass(frozen=True, slots=True)
class Split:
    """One random split, with every router's scores of all rows: made once, cut at many ε."""

    fit: Rows
    calibrate: Rows
    test: Rows
    fixed: Mapping[str, Floats]
    ours: Mapping[str, tuple[Floats, Floats]]


def make_split(tasks: Tasks, seed: int, fresh: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    fit, calibrate, test = _split(tasks, rng, fresh)
    ours = {name: _our_scores(tasks, fit, router, rng) for name, router in ROUTERS.items()}
    return Split(fit, calibrate, test, _fixed_scores(tasks, fit, rng), ours)


def points_of(tasks: Tasks, split: Split, epsilon: float) -> dict[str, Point]:
    """Every router and way of finding its cut, on the test part."""
    losses, rows, test = tasks.losses, split.calibrate, split.test
    points = {}
    for name, scores in split.fixed.items():
        cut = plug_in_cut(scores[rows], losses[rows], epsilon)
        points[f"{name}, plug-in"] = _at(tasks, test, scores[test] <= cut)
    for name, (scores, held) in split.ours.items():
        loose = plug_in_cut(scores[rows], losses[rows], epsilon)
        cuts = cuts_worth_testing(held, losses[split.fit], epsilon)
        safe = choose_cut(scores[rows], losses[rows], cuts, Promise(epsilon)).threshold
        points[f"{name}, plug-in"] = _at(tasks, test, scores[test] <= loose)
        points[f"{name}, promise"] = _at(tasks, test, scores[test] <= safe)
    points |= auto_points(tasks, split, epsilon)
    points["auto, uncalibrated"] = uncalibrated(tasks, test)
    points["oracle"] = _oracle(tasks, test, epsilon)
    return points


def measure(tasks: Tasks, splits: Sequence[Split], epsilon: float) -> list[dict[str, Any]]:
    """One row per router and way of finding the cut: means over the splits."""
    every = [points_of(tasks, split, epsilon) for split in splits]
    found = {name: [points[name] for points in every] for name in every[0]}
    best = float(np.mean([point.avoided for point in found["oracle"]]))
    return [_row(name, points, best, epsilon) for name, points in found.items()]


def _row(name: str, points: list[Point], best: float, epsilon: float) -> dict[str, Any]:
    lost = np.array([point.lost for point in points])
    avoided = np.array([point.avoided for point in points])
    return {
        "router": name,
        "lost_points": round(100 * float(lost.mean()), 2),
        "missed": round(float((lost > epsilon).mean()), 2),
        "avoided": round(float(avoided.mean()), 3),
        "avoided_sd": round(float(avoided.std(ddof=1)), 3) if len(avoided) > 1 else math.nan,
        "thrown_away": round(float(np.mean([point.thrown for point in points])), 3),
        "of_oracle": round(float(avoided.mean()) / best, 3) if best else math.nan,
    }


def run_tasks(
    path: Path, embeddings: Path, seeds: int = 10, fresh: Path | None = None
) -> dict[str, Any]:
    last = _lines(fresh) if fresh else []
    tasks = read_tasks([*_lines(path), *last], embeddings)
    small, large = float(tasks.small.mean()), float(tasks.large.mean())
    print(f"\nBundled models, {len(tasks.small)} tasks: small {small:.1%}, large {large:.1%} right")
    found: dict[str, Any] = {"small": small, "large": large}
    splits = [make_split(tasks, seed, len(last)) for seed in range(seeds)]
    for epsilon in (0.005, 0.01, 0.02):
        rows = measure(tasks, splits, epsilon)
        found[f"lost_{epsilon}"] = rows
        part = f"{len(last)} fresh tasks" if last else "the test part"
        print(f"\nat most {100 * epsilon:g} points lost, {seeds} splits, on {part}")
        print(f"{'':46}{'lost':>7}{'missed':>8}{'large tokens avoided':>24}{'of oracle':>11}"
              f"{'thrown away':>13}")  # fmt: skip
        for row in rows:
            spread = f"{row['avoided']:.1%} ± {row['avoided_sd']:.1%}"
            line = f"{row['router']:46}{row['lost_points']:7}{row['missed']:8.0%}{spread:>24}"
            print(f"{line}{row['of_oracle']:11.1%}{row['thrown_away']:13.1%}")
    return found
