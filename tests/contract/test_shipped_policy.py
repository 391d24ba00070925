"""The policy that comes with the bundled models fits them, and does what it says on graded tasks.
(Half of these tasks fitted its models: what it promises on the others is tested when it is made.)
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from cascade.features import question
from cascade.judge import Answered, judge
from cascade.labels import first_tokens, read_labels
from cascade.policy import read_policy
from gateway.parts.policies import SHIPPED, Policies, Surroundings
from gateway.parts.weights import team_weights_of
from gateway.settings import BUNDLED, Cascade, Settings, bundled_models
from tests.support.routing import chat, question_of

TASKS = BUNDLED.parent / "bench/data/graded-tasks-answered.jsonl.gz"
HERE = all(list((BUNDLED / name).glob("model*.safetensors")) for name in ("small", "large"))


@pytest.mark.skipif(not HERE, reason="the bundled models are not here")
def test_it_is_what_auto_decides_by_out_of_the_box(tmp_path: Path) -> None:
    settings = Settings(models=bundled_models(), cascade=Cascade(folder=tmp_path))
    found = Policies(settings, Surroundings(team_weights_of(settings))).by_tenant["default"]
    assert found.calibrated, found.passed_over
    assert found.note.startswith("quality; max-loss=0.01; confidence=0.9; labels=6")
    assert found.note.endswith("on=bundled-tasks")


@pytest.mark.parametrize("whole", [False, True])
def test_it_loses_no_more_than_it_promises_and_keeps_half_on_small(whole: bool) -> None:
    route = read_policy(SHIPPED.read_text()).route
    with gzip.open(TASKS, "rt") as lines:
        rows = read_labels(lines)[::5]
    lost, kept = 0.0, 0
    for row in rows:
        asked = replace(question_of(row.call), whole=whole)
        choice = route.before(asked)
        for tokens in (route.hold_tokens, None):
            if choice.judged:
                assert row.answer is not None
                seen = first_tokens(row.answer, tokens)
                choice = route.after(asked, (judge(row.call, question(row.call), seen),))
        if choice.model == "small":
            lost, kept = lost + row.large - row.small, kept + 1
    assert lost / len(rows) <= route.promise.epsilon
    assert kept / len(rows) >= 0.5


def test_a_wrong_product_does_not_get_past_the_judge_where_it_is_not_streamed() -> None:
    """Small's own words, recorded. By its first tokens the working looks like any other."""
    route = read_policy(SHIPPED.read_text()).route
    call = chat("What is 48 times 37?")
    asked = replace(question_of(call), whole=True)
    wrong = Answered("48 * 37 = 1676\nAnswer: 1676", (-0.01,) * 40, "stop")
    assert route.after(asked, (judge(call, question(call), wrong),)).model == "large"
