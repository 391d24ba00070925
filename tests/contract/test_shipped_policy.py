"""The policy that comes with the bundled models fits them, and does what it says on graded tasks.
(Half of these tasks fitted its models: what it promises on the others is tested when it is made.)
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cascade.features import question
from cascade.judge import judge
from cascade.labels import first_tokens, read_labels
from cascade.policy import read_policy
from gateway.parts.policies import SHIPPED, Policies, Surroundings
from gateway.parts.weights import team_weights_of
from gateway.settings import BUNDLED, Cascade, Settings, bundled_models
from tests.support.routing import question_of

TASKS = BUNDLED.parent / "bench/data/graded-tasks-answered.jsonl.gz"
HERE = all(list((BUNDLED / name).glob("model*.safetensors")) for name in ("small", "large"))


@pytest.mark.skipif(not HERE, reason="the bundled models are not here")
def test_it_is_what_auto_decides_by_out_of_the_box(tmp_path: Path) -> None:
    settings = Settings(models=bundled_models(), cascade=Cascade(folder=tmp_path))
    found = Policies(settings, Surroundings(team_weights_of(settings))).by_tenant["default"]
    assert found.calibrated, found.passed_over
    assert found.note.startswith("quality; max-loss=0.01; confidence=0.9; labels=6")
    assert found.note.endswith("on=bundled-tasks")


def test_it_loses_no_more_than_it_promises_and_keeps_half_on_small() -> None:
    route = read_policy(SHIPPED.read_text()).route
    with gzip.open(TASKS, "rt") as lines:
        rows = read_labels(lines)[::5]
    lost, kept = 0.0, 0
    for row in rows:
        asked = question_of(row.call)
        choice = route.before(asked)
        if choice.judged:
            assert row.answer is not None
            seen = first_tokens(row.answer, route.hold_tokens)
            choice = route.after(asked, (judge(row.call, question(row.call), seen),))
        if choice.model == "small":
            lost, kept = lost + row.large - row.small, kept + 1
    assert lost / len(rows) <= route.promise.epsilon
    assert kept / len(rows) >= 0.5
