"""Nearest neighbours: exact while flat, right across the change to a graph, and deletable."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.index import Index, to_int8

Matrix = NDArray[np.float32]


def unit_rows(count: int, dimensions: int = 48, seed: int = 0) -> Matrix:
    rows = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def filled(rows: Matrix, flat_limit: int) -> Index:
    index = Index(rows.shape[1], flat_limit=flat_limit)
    for key, row in enumerate(rows):
        index.add(key, row)
    return index


def test_an_empty_index_finds_nothing() -> None:
    assert Index(8).search(np.ones(8, np.float32), 3) == []


@pytest.mark.parametrize("flat_limit", [1000, 50])
def test_a_vector_finds_itself_first_with_cosine_one(flat_limit: int) -> None:
    rows = unit_rows(300)
    index = filled(rows, flat_limit)
    for key in (0, 7, 299):
        best = index.search(rows[key], 3)[0]
        assert best.key == key
        assert best.cosine == pytest.approx(1, abs=2e-3)


def test_flat_search_agrees_with_exact_cosines() -> None:
    rows = unit_rows(200)
    query = unit_rows(1, seed=9)[0]
    found = filled(rows, 1000).search(query, 5)
    cosines = rows @ query
    assert [hit.key for hit in found] == list(np.argsort(-cosines)[:5])
    for hit in found:
        assert hit.cosine == pytest.approx(float(cosines[hit.key]), abs=5e-3)


def test_hits_of_table_and_graph_are_merged_in_order() -> None:
    rows = unit_rows(400)
    found = filled(rows, 40).search(unit_rows(1, seed=3)[0], 20)
    assert len({hit.key for hit in found}) == 20
    assert [hit.cosine for hit in found] == sorted((h.cosine for h in found), reverse=True)


@pytest.mark.parametrize("flat_limit", [1000, 20])
def test_what_was_removed_is_not_found(flat_limit: int) -> None:
    rows = unit_rows(100)
    index = filled(rows, flat_limit)
    for key in range(0, 100, 2):
        index.remove(key)
    index.remove(0)
    assert len(index) == 50
    for key in (0, 2, 98):
        assert all(hit.key % 2 for hit in index.search(rows[key], 10))
    assert index.search(rows[51], 1)[0].key == 51


def test_a_removed_key_may_come_back_elsewhere() -> None:
    rows = unit_rows(30)
    index = filled(rows, 10)
    index.remove(3)
    index.add(3, rows[4] * -1)
    assert index.search(-rows[4], 1)[0].key == 3


def test_a_vector_takes_less_than_half_of_float32() -> None:
    rows = unit_rows(2000, 384)
    assert filled(rows, 10_000).held_bytes / 2000 < 384 * 4 / 2


def test_int8_keeps_the_direction_of_tiny_and_large_vectors() -> None:
    for scale in (1e-3, 1.0, 1e3):
        row = to_int8(np.array([0.5, -0.25, 0.125], np.float32) * np.float32(scale))
        assert row.tolist() == [127, -64, 32]


def test_it_may_be_imported_before_the_embedder() -> None:
    """The two libraries below them crash the process when loaded in the other order."""
    program = "import cache.index, cache.embed"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
