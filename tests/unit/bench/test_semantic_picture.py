"""The picture of hits against error shows what was run, and no more."""

from __future__ import annotations

import re
from pathlib import Path

from bench.semantic_lines import Run, Runs
from bench.semantic_picture import CURVES, draw, family_of


def run(policy: str, max_error: float, seed: int, served: int, wrong: int) -> Run:
    return Run(
        *("toys", policy, max_error, seed, 1000, served, 0, wrong, 0, wrong, 0.0, 0.0),
        by_class=[],
    )


def test_runs_of_one_sort_are_one_line_of_their_mean(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    runs.add(run("ours", 0.01, 0, 300, 2))
    runs.add(run("ours", 0.01, 1, 500, 4))
    runs.add(run("static .90", 0.0, 0, 600, 30))
    read_again = Runs(tmp_path / "runs").lines()
    assert [(line.policy, line.hit, line.wrong) for line in read_again] == [
        ("ours", 40.0, 0.3),
        ("static .90", 60.0, 3.0),
    ]


def test_every_policy_that_was_run_is_named_and_no_other(tmp_path: Path) -> None:
    runs = Runs(None)
    for policy in ("ours", "pooled", "static .80", "static .80 + guards"):
        runs.add(run(policy, 0.0 if "static" in policy else 0.01, 0, 300, 0))
    draw(runs.lines(), tmp_path / "picture.svg")
    words = re.findall(r">([^<>]+)</text>", (tmp_path / "picture.svg").read_text())
    named = {family for name, family, *_ in CURVES if name in words}
    assert named == {"ours", "pooled", "static", "guards"}
    assert "toys" in words


def test_thresholds_with_guards_are_a_family_of_their_own() -> None:
    assert family_of("static .80 + guards") == "guards"
    assert family_of("static .80") == "static"
    assert family_of("vcache") == "vcache"
