"""The nearest kept questions of one namespace, in int8.

Problem. Namespaces are many and mostly small; one may hold a hundred thousand questions. A graph
is fast when large, costs half a millisecond an insert and cannot be built in one go on an event
loop; comparing with everything is exact, deletes trivially and is as fast up to a thousand or two.

Choice. Both at once. New vectors go into a flat int8 table, compared one by one in SIMD. Beyond
`flat_limit` each insert moves a few of the oldest into a usearch graph (i8, cosine), so that the
change-over has no pause, and a search asks both and merges. int8 with a scale per vector keeps
cosines to three decimals.

Rejected: float32 in numpy (twice as fast below ten thousand, four times the memory); int8 in numpy
(no SIMD for it: 20 times slower); a graph from the start (850 B an entry, 0.3 ms an insert).

Measured on one core of a small server, 384 dimensions, best of 60: flat 0.08 ms at 1,000, 0.29 at
4,000 and 1.4 at 20,000. 540 B an entry flat, 950 in the graph. With 100,000 questions of real data
sets a search took 2.1 ms of a busy processor with a table of 4,000, and 1.2 to 1.7 ms with 1,000;
of the eight nearest, which a sighting looks at, 99.0 % were found, of the very nearest 99.0 %. A
wider search (`expansion_search` 128 for 64) finds 99.7 % for 1.7 times as much, a narrower one (32)
97.7 % for 0.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # noqa: F401  it crashes when usearch came first
from numpy.typing import NDArray
from usearch.compiled import MetricKind
from usearch.index import Index as Graph
from usearch.index import search

Bytes8 = NDArray[np.int8]

FLAT_LIMIT = 1000
MOVED_PER_ADD = 4


def bytes_each(dimensions: int) -> int:
    """Of a vector in the graph, the larger of its two places."""
    return 2 * dimensions + 180


@dataclass(frozen=True, slots=True)
class Hit:
    key: int
    cosine: float


def to_int8(vector: NDArray[np.float32]) -> Bytes8:
    """Scaled so that the largest component is 127; cosines do not see the scale."""
    largest = float(np.abs(vector).max())
    scaled: Bytes8 = np.round(vector * (127 / max(largest, 1e-12))).astype(np.int8)
    return scaled


class Flat:
    """A table of int8 rows in the order of arrival, holes filled from the end."""

    def __init__(self, dimensions: int) -> None:
        self._rows = np.zeros((16, dimensions), np.int8)
        self._keys: list[int] = []
        self._place: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: int) -> bool:
        return key in self._place

    @property
    def held_bytes(self) -> int:
        return self._rows.nbytes + 150 * len(self._keys)

    def add(self, key: int, row: Bytes8) -> None:
        at = len(self._keys)
        if at == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[at] = row
        self._keys.append(key)
        self._place[key] = at

    def remove(self, key: int) -> Bytes8:
        """The removed row, a copy."""
        at = self._place.pop(key)
        row: Bytes8 = self._rows[at].copy()
        last = self._keys.pop()
        if last != key:
            self._rows[at] = self._rows[len(self._keys)]
            self._keys[at] = last
            self._place[last] = at
        return row

    def oldest(self) -> int:
        return next(iter(self._place))

    def search(self, row: Bytes8, count: int) -> list[Hit]:
        size = len(self._keys)
        if not size:
            return []
        rows = self._rows[:size]
        found = search(rows, row, min(count, size), MetricKind.Cos, exact=True, threads=1)
        return [
            Hit(self._keys[int(at)], 1 - float(distance))
            for at, distance in zip(found.keys, found.distances, strict=True)
        ]


class Index:
    """Keys with vectors of one length. Not for two threads at once."""

    def __init__(self, dimensions: int, *, flat_limit: int = FLAT_LIMIT) -> None:
        self.dimensions = dimensions
        self._flat = Flat(dimensions)
        self._flat_limit = flat_limit
        self._graph: Graph | None = None
        self._moved: set[int] = set()

    def __len__(self) -> int:
        return len(self._flat) + len(self._moved)

    @property
    def held_bytes(self) -> int:
        graph = self._graph.memory_usage if self._graph is not None else 0
        return self._flat.held_bytes + int(graph)

    def add(self, key: int, vector: NDArray[np.float32]) -> None:
        assert key not in self._flat
        assert key not in self._moved
        self._flat.add(key, to_int8(vector))
        if len(self._flat) > self._flat_limit:
            self._move(MOVED_PER_ADD)

    def remove(self, key: int) -> None:
        """Nothing happens if it is not there."""
        if key in self._flat:
            self._flat.remove(key)
        elif key in self._moved:
            assert self._graph is not None
            self._moved.discard(key)
            self._graph.remove(key)

    def search(self, vector: NDArray[np.float32], count: int) -> list[Hit]:
        """Up to `count` hits, most similar first."""
        row = to_int8(vector)
        found = self._flat.search(row, count)
        if self._graph is not None and self._moved:
            matches = self._graph.search(row, min(count, len(self._moved)), threads=1)
            found += [
                Hit(int(key), 1 - float(distance))
                for key, distance in zip(matches.keys, matches.distances, strict=True)
            ]
        found.sort(key=lambda hit: -hit.cosine)
        return found[:count]

    def _move(self, count: int) -> None:
        if self._graph is None:
            self._graph = Graph(ndim=self.dimensions, metric="cos", dtype="i8")
        for _ in range(min(count, len(self._flat))):
            key = self._flat.oldest()
            self._graph.add(key, self._flat.remove(key), threads=1)
            self._moved.add(key)
