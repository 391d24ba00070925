"""Kernels that run at one time are busy time once, and what lies between them are gaps."""

from __future__ import annotations

from bench.engine_gpu_where import covered


def test_spans_that_overlap_or_touch_count_once() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (3, 4), (0.5, 1)]) == [(0, 4), (5, 6)]
    assert covered([]) == []
