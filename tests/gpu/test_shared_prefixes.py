"""Attention that reads a common prefix once for all its rows, in the whole engine: the answers are
transformers', and it did run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.scheduler import Limits
from tests.gpu.test_engine import VOCAB, answers, reference
from tests.support.gpu_cases import SEED
from tests.support.strays import Judge, Reference

__all__ = ["reference"]

MODES: dict[str, dict[str, Any]] = {
    "graphs": {},
    "launch by launch": {"graphs": False},
    "in chunks": {"limits": Limits(max_batched_tokens=96, max_running=32)},
    "preempted": {"num_pages": 190, "limits": Limits(max_batched_tokens=512, max_running=32)},
}


def prompts(rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Two groups that begin alike, and some that begin like nobody."""
    heads = [rng.integers(10, VOCAB, length) for length in (1200, 600)]
    tails = [rng.integers(10, VOCAB, int(rng.integers(1, 60))) for _ in range(20)]
    alike = [np.concatenate((heads[at % 2], tail)) for at, tail in enumerate(tails)]
    alone = [rng.integers(10, VOCAB, 40) for _ in range(3)]
    return [tuple(int(token) for token in one) for one in (*alike, *alone)]


@pytest.mark.parametrize("mode", MODES)
def test_answers_over_a_common_prefix_are_transformers(
    reference: Reference,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.support.gpu_lanes import gpu_lane

    lane = gpu_lane(reference.path, **MODES[mode])
    prefixes = lane.runner._prefixes  # type: ignore[attr-defined]
    planned, plan = [], prefixes.plan

    def watched(rows: Any) -> Any:
        planned.append(plan(rows))
        return planned[-1]

    monkeypatch.setattr(prefixes, "plan", watched)
    asked = prompts(np.random.default_rng(SEED))
    judge = Judge(reference)
    for said in answers({"m": lane}, [("m", prompt) for prompt in asked], 96, rounds=2):
        for prompt, answer in zip(asked, said, strict=True):
            judge.hear(prompt, answer)
    assert sum(map(bool, planned)) > 20, "shared prefixes hardly ran"
    assert (lane.scheduler.num_preemptions > 0) or mode != "preempted"
    judge.assert_greedy()
