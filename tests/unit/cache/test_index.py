"""Nearest neighbours: exact as far as all is looked at, nearly so beyond, and deletable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache.index import Index, bytes_each, to_int8

Matrix = NDArray[np.float32]


def unit_rows(count: int, dimensions: int = 48, seed: int = 0) -> Matrix:
    rows = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def topical_rows(count: int, dimensions: int = 384) -> Matrix:
    """As texts are: around topics, some of which are near to each other."""
    rng = np.random.default_rng(5)
    topics = rng.standard_normal((60, dimensions)).astype(np.float32)
    rows = topics[rng.integers(0, 60, count)]
    rows = rows + 0.8 * rng.standard_normal((count, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def filled(rows: Matrix, cell: int = 16, probed: int = 100_000) -> Index:
    index = Index(rows.shape[1], cell=cell, probed=probed)
    for key, row in enumerate(rows):
        index.add(key, row)
    return index


def keys_of(index: Index, vector: NDArray[np.float32], count: int) -> list[int]:
    return [key for key, _ in index.search(vector, count)]


def test_an_empty_index_finds_nothing() -> None:
    assert Index(8).search(np.ones(8, np.float32), 3) == []


@pytest.mark.parametrize("cell", [1000, 16])
def test_a_vector_finds_itself_first_with_cosine_one(cell: int) -> None:
    rows = unit_rows(300)
    index = filled(rows, cell, probed=64)
    for at in (0, 7, 299):
        key, cosine = index.search(rows[at], 3)[0]
        assert key == at
        assert cosine == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("cell", [1000, 16])
def test_where_all_is_looked_at_the_nearest_are_exact(cell: int) -> None:
    rows, query = unit_rows(400), unit_rows(1, seed=9)[0]
    found = filled(rows, cell).search(query, 20)
    cosines = rows @ query
    assert [key for key, _ in found[:5]] == list(np.argsort(-cosines)[:5])
    assert len({key for key, _ in found}) == 20
    assert [cosine for _, cosine in found] == sorted((one for _, one in found), reverse=True)
    for key, cosine in found:
        assert cosine == pytest.approx(float(cosines[key]), abs=5e-3)


def test_looking_at_a_tenth_finds_nearly_all_of_the_nearest() -> None:
    rows = topical_rows(4000)
    index = filled(rows, cell=64, probed=400)
    rng = np.random.default_rng(8)
    chosen = rng.integers(0, len(rows), 200)
    asked = rows[chosen] + 0.02 * rng.standard_normal((200, 384)).astype(np.float32)
    found = [keys_of(index, one, 8) for one in asked]
    true = np.argsort(-(asked @ rows.T), axis=1)[:, :8]
    assert np.mean([one[0] == key for one, key in zip(found, chosen, strict=True)]) > 0.97
    shared = [len({*one} & {*all_.tolist()}) / 8 for one, all_ in zip(found, true, strict=True)]
    assert np.mean(shared) > 0.9


@pytest.mark.parametrize("cell", [1000, 8])
def test_what_was_removed_is_not_found(cell: int) -> None:
    rows = unit_rows(100)
    index = filled(rows, cell)
    for key in range(0, 100, 2):
        index.remove(key)
    index.remove(0)
    assert len(index) == 50
    for key in (0, 2, 98):
        assert all(found % 2 for found in keys_of(index, rows[key], 10))
    assert keys_of(index, rows[51], 1) == [51]


def test_a_removed_key_may_come_back_elsewhere() -> None:
    rows = unit_rows(30)
    index = filled(rows, 8)
    index.remove(3)
    index.add(3, rows[4] * -1)
    assert keys_of(index, -rows[4], 1) == [3]


def test_one_vector_kept_again_and_again_hides_nothing_and_opens_no_cells() -> None:
    rows = unit_rows(40)
    index = filled(rows, 16, probed=64)
    for key in range(100, 1100):
        index.add(key, rows[7])
    assert len(index) == 1040
    for at in range(40):
        assert index.search(rows[at], 1)[0][1] == pytest.approx(1, abs=2e-3)
    assert index.held_bytes < 1040 * 3 * bytes_each(48)
    for key in range(100, 1100):
        index.remove(key)
    assert keys_of(index, rows[7], 1) == [7]
    assert index.held_bytes < 40 * 6 * bytes_each(48)


def test_a_vector_of_zeros_is_like_nothing() -> None:
    index = filled(np.concatenate([np.zeros((1, 48), np.float32), unit_rows(9)]))
    assert index.search(unit_rows(1)[0], 1)[0][0] == 1
    assert all(cosine == 0 for _, cosine in index.search(np.zeros(48, np.float32), 3))


def test_an_index_that_was_emptied_is_as_new() -> None:
    rows = unit_rows(200)
    index = filled(rows, 8)
    for key in range(200):
        index.remove(key)
    assert index.search(rows[0], 3) == []
    index.add(7, rows[7])
    assert keys_of(index, rows[7], 3) == [7]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=300), st.integers(1, 61))
def test_whatever_comes_and_goes_it_finds_what_was_not_removed(
    steps: list[tuple[int, bool]], different: int
) -> None:
    """With few `different` vectors, most are kept several times."""
    rows, index, held = unit_rows(61, 16), Index(16, cell=8, probed=32), set[int]()
    for key, comes in steps:
        if comes and key not in held:
            index.add(key, rows[key % different])
            held.add(key)
        elif not comes:
            index.remove(key)
            held.discard(key)
    assert len(index) == len(held)
    for key in held:
        assert index.search(rows[key % different], 1)[0][1] == pytest.approx(1, abs=0.02)
    everything = Index(16, cell=8)
    for key in held:
        everything.add(key, rows[key % different])
    assert set(keys_of(everything, rows[0], 100)) == held


def test_a_vector_takes_less_than_half_of_float32() -> None:
    rows = unit_rows(2000, 384)
    assert filled(rows, 256).held_bytes / 2000 < 384 * 4 / 2


@pytest.mark.parametrize("count", [200, 10_000])
def test_a_vector_takes_about_what_is_said(count: int) -> None:
    index = filled(topical_rows(count), cell=512)
    assert 0.4 < index.held_bytes / count / bytes_each(384) < 1.2


def test_int8_keeps_the_direction_of_tiny_and_large_vectors() -> None:
    for scale in (1e-3, 1.0, 1e3):
        row = to_int8(np.array([0.5, -0.25, 0.125], np.float32) * np.float32(scale))
        assert row.tolist() == [127, -64, 32]
