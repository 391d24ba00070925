"""The nearest kept questions of one namespace, in int8, in cells that divide when they are full.

Problem. Namespaces are many and mostly small; one may hold a hundred thousand questions. Comparing
with everything is exact and quick up to some thousands. A graph (HNSW) is quick beyond, but costs
0.35 to 2 ms an insert, on the event loop and again at each start, and its search jumps through
memory that the embedding has just pushed out of the processor's caches.

Choice. An inverted file (Sivic and Zisserman 2003) that grows as it is filled, as SPFresh does (Xu
et al. 2023): a vector goes to the cell with the nearest centre; a cell with more than `CELL` is
divided in two, its rows go to the nearest of the centres around, and rows of the cells around come
over where a new centre is nearer; a cell that has lost nearly all is dissolved, and one whose rows
are one and the same (a question asked again and again) grows instead. A search compares with the
centres and then with the `PROBED` rows of the nearest cells: with everything, where there is no
more than that. One structure from ten questions to a million, without training, and what is read
lies together. NumKong compares (SIMD for int8); int8 with a scale per vector keeps cosines to three
decimals.

Rejected: usearch's graph, which was here before (the figures above); its exact search (several
times slower than NumKong's: a call for each pair); float32 in numpy (four times the memory); one
bit per component and int8 for the best of them (everything is still read: 5 ms at a million);
FAISS's IVF (must be trained on what is there, and again when that has changed).
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numkong
import numpy as np
from numpy.typing import NDArray

Bytes8: TypeAlias = NDArray[np.int8]
Floats: TypeAlias = NDArray[np.float32]
Keys: TypeAlias = NDArray[np.int64]

CELL: Final = 256
"""Rows from which a cell is divided."""
PROBED: Final = 2048
"""Rows that a search looks at, at least, if there are as many."""
AROUND: Final = 8
"""Cells that exchange rows with one that is divided."""
ROUNDS: Final = 4
"""Of two-means, when a cell is divided."""


def bytes_each(dimensions: int) -> int:
    """Resident memory for a vector with its places, measured on 20,000 to 100,000 of 384 to 1,024
    components."""
    return 2 * dimensions + 130


def to_int8(vector: Floats) -> Bytes8:
    """Scaled so that the largest component is 127; cosines do not see the scale."""
    largest = max(float(vector.max()), -float(vector.min()), 1e-12)
    scaled: Bytes8 = np.rint(vector * np.float32(127 / largest)).astype(np.int8)
    return scaled


def dots(rows: Bytes8, others: Bytes8) -> NDArray[np.float64]:
    """(rows, dimensions) and (others, dimensions), neither empty → (rows, others)."""
    return np.asarray(numkong.cdist(rows, others, "dot"))


class Table:
    """Rows with keys, in the order of arrival; holes are filled from the end."""

    __slots__ = ("_keys", "_norms", "_rows", "limit", "size")

    def __init__(self, dimensions: int, limit: int) -> None:
        """`limit`: the size from which it is to be divided."""
        self._rows = np.empty((0, dimensions), np.int8)
        self._norms = np.empty(0, np.float32)
        self._keys = np.empty(0, np.int64)
        self.size = 0
        self.limit = limit

    @property
    def rows(self) -> Bytes8:
        return self._rows[: self.size]

    @property
    def norms(self) -> Floats:
        return self._norms[: self.size]

    @property
    def keys(self) -> Keys:
        return self._keys[: self.size]

    @property
    def held_bytes(self) -> int:
        return self._rows.nbytes + self._norms.nbytes + self._keys.nbytes

    def near(self, row: Bytes8) -> NDArray[np.float64]:
        """(1, dimensions) → (rows,): the cosines, times the length of `row`."""
        near: NDArray[np.float64] = dots(self.rows, row)[:, 0] / self.norms
        return near

    def put(self, keys: Keys, rows: Bytes8) -> None:
        """Add (rows, dimensions)."""
        size = self.size + len(keys)
        if size > len(self._keys):
            room = max(size, 16, len(self._keys) * 5 // 4)
            self._rows = np.resize(self._rows, (room, self._rows.shape[1]))
            self._norms = np.resize(self._norms, room)
            self._keys = np.resize(self._keys, room)
        self._rows[self.size : size] = rows
        self._norms[self.size : size] = _norms(rows)
        self._keys[self.size : size] = keys
        self.size = size

    def change(self, at: int, row: Bytes8) -> None:
        self._rows[at], self._norms[at] = row, _norms(row[None])[0]

    def remove(self, at: int) -> None:
        self.size -= 1
        for column in (self._rows, self._norms, self._keys):
            column[at] = column[self.size]
        if 32 < 2 * self.size < len(self._keys):
            self._hold(slice(self.size))

    def take(self, chosen: NDArray[np.bool_]) -> tuple[Keys, Bytes8]:
        """Remove them: their keys and rows."""
        keys, rows, stay = self.keys[chosen], self.rows[chosen], ~chosen
        self._hold(stay)
        self.size = len(self._keys)
        return keys, rows

    def _hold(self, kept: NDArray[np.bool_] | slice) -> None:
        """No more than these, in no more room than they need."""
        self._keys, self._norms = self.keys[kept].copy(), self.norms[kept].copy()
        self._rows = self.rows[kept].copy()


class Index:
    """Keys with vectors of one length. Not for two threads at once."""

    def __init__(self, dimensions: int, *, cell: int = CELL, probed: int = PROBED) -> None:
        self.dimensions = dimensions
        self._full = cell
        self._probed = probed
        self._cells: list[Table] = []
        self._centres = Table(dimensions, 0)
        """A row for each cell."""
        self._home: dict[int, Table] = {}
        self._open(np.ones(dimensions, np.int8))

    def __len__(self) -> int:
        return len(self._home)

    @property
    def held_bytes(self) -> int:
        tables = sum(table.held_bytes for table in (self._centres, *self._cells))
        return tables + 100 * len(self._home)

    def add(self, key: int, vector: Floats) -> None:
        assert key not in self._home
        row = to_int8(vector)[None]
        at = int(self._centres.near(row).argmax()) if len(self._cells) > 1 else 0
        self._put(at, np.array([key]), row)
        if self._cells[at].size > self._cells[at].limit:
            self._divide(at)

    def remove(self, key: int) -> None:
        """Nothing happens if it is not there."""
        cell = self._home.pop(key, None)
        if cell is None:
            return
        cell.remove(int(np.flatnonzero(cell.keys == key)[0]))
        if cell.size < self._full // 8 and len(self._cells) > 1:
            self._dissolve(self._cells.index(cell))

    def search(self, vector: Floats, count: int) -> list[tuple[int, float]]:
        """Up to `count` keys with their cosines, most similar first."""
        if not self._home:
            return []
        row = to_int8(vector)[None]
        probed = self._probe(row)
        keys = np.concatenate([cell.keys for cell in probed])
        near = np.concatenate([cell.near(row) for cell in probed])
        best = _largest(near, count)
        keys, near = keys[best], near[best] / _norms(row)
        order = np.argsort(-near)
        return list(zip(keys[order].tolist(), near[order].tolist(), strict=True))

    def _probe(self, row: Bytes8) -> list[Table]:
        """The nearest cells, with `probed` rows if there are as many."""
        known = len(self._cells)
        if known == 1:
            return self._cells
        near = self._centres.near(row)
        few = min(known, 8 * self._probed // self._full)
        found = self._with_enough(_in_order(near, few))
        return found or self._with_enough(_in_order(near, known)) or self._cells

    def _with_enough(self, order: list[int]) -> list[Table]:
        """The first cells that have `probed` rows; none if all do not."""
        found, left = [], self._probed
        for at in order:
            found.append(self._cells[at])
            left -= found[-1].size
            if left <= 0:
                return found
        return []

    # ------------------------------------------------------------------ cells

    def _open(self, centre: Bytes8) -> int:
        at = len(self._cells)
        self._cells.append(Table(self.dimensions, self._full))
        self._centres.put(np.array([at]), centre[None])
        return at

    def _put(self, at: int, keys: Keys, rows: Bytes8) -> None:
        cell = self._cells[at]
        cell.put(keys, rows)
        self._home.update(dict.fromkeys(keys.tolist(), cell))

    def _divide(self, at: int) -> None:
        cell = self._cells[at]
        first, second, smaller = _halves(cell.rows)
        if smaller < max(1, self._full // 16):  # one and the same, but for a few
            cell.limit = 2 * cell.size
            return
        around = _in_order(self._centres.near(first[None]), AROUND + 1)
        around = [near for near in around if near != at]
        self._centres.change(at, first)
        added = self._open(second)
        touched = [self._cells[one] for one in (at, added, *around)]
        self._exchange(at, [added, *around])
        for near in around:
            self._exchange(near, [at, added])
        for one in touched:
            if not one.size:
                self._dissolve(self._cells.index(one))

    def _exchange(self, at: int, others: list[int]) -> None:
        """The rows of a cell that are nearer to others go there."""
        cell, homes = self._cells[at], [at, *others]
        centres = self._centres.rows[homes], self._centres.norms[homes]
        nearest = (dots(cell.rows, centres[0]) / centres[1]).argmax(axis=1)
        if not nearest.any():
            return
        keys, rows = cell.take(nearest > 0)
        nearest = nearest[nearest > 0]
        for place in np.unique(nearest).tolist():
            self._put(homes[place], keys[nearest == place], rows[nearest == place])

    def _dissolve(self, at: int) -> None:
        """Its rows go to other cells, and the last cell into its place."""
        keys, rows = self._cells[at].take(np.ones(self._cells[at].size, np.bool_))
        self._centres.remove(at)
        last = self._cells.pop()
        if at < len(self._cells):
            self._cells[at] = last
        for key, row in zip(keys, rows, strict=True):
            nearest = int(self._centres.near(row[None]).argmax())
            self._put(nearest, key[None], row[None])


def _in_order(near: NDArray[np.float64], count: int) -> list[int]:
    """Where the largest are, the very largest first."""
    best = _largest(near, count)
    order: list[int] = best[np.argsort(-near[best])].tolist()
    return order


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Where they are, in no order."""
    if len(values) <= count:
        return np.arange(len(values))
    return np.argpartition(values, -count)[-count:]


def _norms(rows: Bytes8) -> Floats:
    """(rows, dimensions) → (rows,); 1 for a row of zeros, which is like nothing."""
    lengths: Floats = np.linalg.norm(rows.astype(np.float32), axis=1)
    return np.maximum(lengths, 1)


def _halves(rows: Bytes8) -> tuple[Bytes8, Bytes8, int]:
    """Centres of two halves by two-means, which begins with two rows that are far apart, and the
    size of the smaller one."""
    first = _farthest(rows, rows[0])
    second = _farthest(rows, first)
    smaller = 0
    for _ in range(ROUNDS):
        centres = np.stack([first, second])
        to_first, to_second = (dots(rows, centres) / _norms(centres)).T
        nearer = to_first > to_second
        smaller = int(min(nearer.sum(), len(rows) - nearer.sum()))
        if not smaller:  # one and the same
            break
        first, second = _centre(rows[nearer]), _centre(rows[~nearer])
    return first, second, smaller


def _farthest(rows: Bytes8, row: Bytes8) -> Bytes8:
    far: Bytes8 = rows[dots(rows, row[None])[:, 0].argmin()]
    return far


def _centre(rows: Bytes8) -> Bytes8:
    """Of directions, each of which weighs the same but for how it was rounded."""
    return to_int8(rows.mean(axis=0, dtype=np.float32))
