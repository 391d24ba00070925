"""Chunks become arrays: decode rows first, every token with its position and its slot."""

from __future__ import annotations

import numpy as np

from engine.batch import Batch, BatchBuilder
from engine.sequence import Chunk, Sequence
from tests.support.steps import make_sequence

PAGE = 4


def builder(**sizes: int) -> BatchBuilder:
    return BatchBuilder(
        page_size=PAGE, **{"max_tokens": 64, "max_chunks": 8, "max_pages": 16, **sizes}
    )


def sequence(tokens: range, computed: int, pages: list[int]) -> Sequence:
    made = make_sequence(tokens)
    made.computed, made.pages = computed, pages
    return made


def mixed() -> tuple[list[Chunk], Batch]:
    chunks = [
        Chunk(sequence(range(100, 110), 3, [5, 2, 9]), 6),
        Chunk(sequence(range(200, 206), 5, [7, 1]), 1),
        Chunk(sequence(range(300, 301), 0, [4]), 1),
        Chunk(sequence(range(400, 409), 8, [3, 6, 8]), 1),
    ]
    return chunks, builder().build(chunks)


def test_decode_rows_come_first_in_the_order_given() -> None:
    chunks, batch = mixed()
    assert batch.num_decode == 2
    assert batch.chunks == [chunks[1], chunks[3], chunks[0], chunks[2]]
    assert batch.starts.tolist() == [0, 1, 2, 8, 9]


def test_tokens_and_positions_are_the_uncomputed_ones() -> None:
    _, batch = mixed()
    assert batch.tokens.tolist() == [205, 408, 103, 104, 105, 106, 107, 108, 300]
    assert batch.positions.tolist() == [5, 8, 3, 4, 5, 6, 7, 8, 0]


def test_slots_follow_the_page_table() -> None:
    _, batch = mixed()
    assert batch.slots.tolist() == [
        1 * PAGE + 1,
        8 * PAGE,
        5 * PAGE + 3,
        *(2 * PAGE + offset for offset in range(4)),
        9 * PAGE,
        4 * PAGE,
    ]


def test_lengths_and_tables_cover_the_context() -> None:
    _, batch = mixed()
    assert batch.kv_lengths.tolist() == [6, 9, 9, 1]
    assert batch.tables.tolist() == [[7, 1, 0], [3, 6, 8], [5, 2, 9], [4, 0, 0]]


def test_only_chunks_that_reach_the_last_token_draw() -> None:
    chunks, batch = mixed()
    assert batch.sampled == [chunks[1], chunks[3], chunks[2]]
    assert batch.sample_rows.tolist() == [0, 1, 8]


def test_tables_of_an_earlier_step_leave_nothing_behind() -> None:
    made = builder()
    made.build([Chunk(sequence(range(20), 0, [1, 2, 3, 4, 5]), 20)])
    batch = made.build(
        [Chunk(sequence(range(2), 1, [9]), 1), Chunk(sequence(range(9), 0, [6, 7, 8]), 9)]
    )
    assert batch.tables.tolist() == [[9, 0, 0], [6, 7, 8]]


def test_buffers_grow_beyond_the_usual_step() -> None:
    made = builder(max_tokens=4, max_chunks=1)
    chunks = [Chunk(sequence(range(30), 0, list(range(1, 9))), 30) for _ in range(5)]
    batch = made.build(chunks)
    assert len(batch.tokens) == 150
    assert batch.slots[:30].tolist() == (np.arange(30) + PAGE).tolist()


def test_an_empty_step_is_empty() -> None:
    batch = builder().build([])
    assert len(batch.tokens) == 0
    assert batch.sampled == []
