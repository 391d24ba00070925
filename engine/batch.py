"""Chunks of sequences → the flat arrays that one step computes on.

A step may mix decode rows (chunks of one token) and prefill chunks; tokens of all chunks lie one
after another, decode rows first, so that a backend finds the rows of the hot path in one slice:

    rows     d₀ d₁ d₂ | p₀ p₀ p₀ p₀ | p₁ p₁ ...
    starts   0  1  2    3             7          one entry a chunk, and the end

Everything is numpy: building a batch of 32 rows with tensor operations costs 2 µs an operation a
row, slices of preallocated arrays a tenth of that. Buffers belong to the `BatchBuilder` and are
overwritten by the next step; a runner that overlaps steps needs two builders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.sequence import Chunk

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step's arrays (views into the builder's buffers). `chunks` are in row order."""

    chunks: list[Chunk]
    num_decode: int
    """The first so many chunks, and rows, are decode rows: one token with a context before it."""
    tokens: Ints
    """[rows] ids to embed"""
    positions: Ints
    """[rows]"""
    slots: Ints
    """[rows] where each row's key and value go: page · page_size + offset"""
    starts: Ints
    """[chunks + 1] first row of each chunk"""
    kv_lengths: Ints
    """[chunks] context of each chunk's last row, itself included"""
    tables: Ints
    """[chunks, widest] page numbers, 0 beyond a chunk's own"""
    sample_rows: Ints
    """[samples] the last row of each chunk that draws a token"""
    sampled: list[Chunk]
    """[samples] the chunks of `sample_rows`"""


class BatchBuilder:
    def __init__(self, *, page_size: int, max_tokens: int, max_chunks: int, max_pages: int) -> None:
        """`max_tokens`, `max_chunks`: of one step; they grow when a step has more.
        `max_pages`: of one sequence."""
        self._page_size = page_size
        self._max_pages = max_pages
        self._tokens = np.zeros(max_tokens, dtype=np.int64)
        self._positions = np.zeros(max_tokens, dtype=np.int64)
        self._slots = np.zeros(max_tokens, dtype=np.int64)
        self._tables = np.zeros((max_chunks, max_pages), dtype=np.int64)

    def build(self, chunks: list[Chunk]) -> Batch:
        ordered = sorted(chunks, key=_is_prefill)
        lengths = np.fromiter((chunk.length for chunk in ordered), np.int64, len(ordered))
        starts = np.zeros(len(ordered) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        self._reserve(int(starts[-1]), len(ordered))
        num_decode = sum(not _is_prefill(chunk) for chunk in ordered)
        self._fill_decode(ordered[:num_decode])
        for row in range(num_decode, len(ordered)):
            self._fill_prefill(ordered[row], row, int(starts[row]))
        return self._views(ordered, num_decode, starts, lengths)

    def _views(self, chunks: list[Chunk], num_decode: int, starts: Ints, lengths: Ints) -> Batch:
        rows = int(starts[-1])
        computed = np.fromiter((c.sequence.computed for c in chunks), np.int64, len(chunks))
        kv_lengths = computed + lengths
        widest = -(-int(kv_lengths.max(initial=0)) // self._page_size)
        sampling = [index for index, chunk in enumerate(chunks) if chunk.samples]
        return Batch(
            chunks=chunks,
            num_decode=num_decode,
            tokens=self._tokens[:rows],
            positions=self._positions[:rows],
            slots=self._slots[:rows],
            starts=starts,
            kv_lengths=kv_lengths,
            tables=self._tables[: len(chunks), :widest],
            sample_rows=starts[1:][sampling] - 1,
            sampled=[chunks[index] for index in sampling],
        )

    def _fill_decode(self, chunks: list[Chunk]) -> None:
        count = len(chunks)
        for row, chunk in enumerate(chunks):
            sequence = chunk.sequence
            self._tokens[row] = sequence.tokens[sequence.computed]
            self._positions[row] = sequence.computed
            self._fill_table(row, sequence.pages)
        position = self._positions[:count]
        page, offset = np.divmod(position, self._page_size)
        page_number = self._tables[np.arange(count), page]
        np.add(page_number * self._page_size, offset, out=self._slots[:count])

    def _fill_prefill(self, chunk: Chunk, row: int, start: int) -> None:
        sequence = chunk.sequence
        first, last = sequence.computed, sequence.computed + chunk.length
        rows = slice(start, start + chunk.length)
        self._tokens[rows] = sequence.tokens[first:last]
        self._positions[rows] = np.arange(first, last)
        self._fill_table(row, sequence.pages)
        page, offset = np.divmod(self._positions[rows], self._page_size)
        self._slots[rows] = self._tables[row, page] * self._page_size + offset

    def _fill_table(self, row: int, pages: list[int]) -> None:
        table = self._tables[row]
        table[: len(pages)] = pages
        table[len(pages) :] = 0

    def _reserve(self, rows: int, chunks: int) -> None:
        if rows > len(self._tokens):
            size = max(rows, 2 * len(self._tokens))
            self._tokens, self._positions, self._slots = np.zeros((3, size), dtype=np.int64)
        if chunks > len(self._tables):
            size = max(chunks, 2 * len(self._tables))
            self._tables = np.zeros((size, self._max_pages), dtype=np.int64)


def _is_prefill(chunk: Chunk) -> bool:
    return chunk.length > 1 or chunk.sequence.computed == 0
