# numba is half typed: its own decorators and intrinsics do not pass a strict check.
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: disable-error-code="import-untyped,import-not-found,attr-defined,call-arg,assignment"
"""Decode attention that reads pages where they lie, compiled by numba. Optional.

Problem: with torch alone a decode row's pages are gathered into one piece and then read again, in
three calls and ~60 µs a row a layer. At 32 rows with contexts of 100 to 800 tokens that is four
fifths of a step: memory is read, written and read again, and memory is what limits.

Choice: one compiled loop over (row, key heads). A row's query stays in fp32; pass 1 walks its pages
for q · k, then a softmax over the scratch row, pass 2 walks the pages for Σ p · v. A page's keys
serve all query heads of their group while they are in cache; bf16 is widened by a shift.

    row r:   table[r] → page 7 [16 tokens × kv_heads × head_dim] → page 2 → …  length[r] tokens

Items are claimed from an atomic counter by the threads of team.py: whole rows where there are
enough of them, single key heads of a row where there are not.

Rejected: numba's `prange` (a second thread pool, see team.py); keys transposed in their page, which
would save the sum across lanes (0.65 ms a layer of arithmetic against 1.5 ms of memory) at the
price of a scattered store and a slower torch path; prefetching the next page (no gain measured).

Price: numba and llvmlite (~50 MB installed), and two seconds to compile for a new shape, cached on
disk. Without them kernels/attention.py does it all: it is also the twin that a test compares with.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic
from torch import Tensor

from engine.batch import Batch
from engine.kernels.attention import Step, TorchAttention
from engine.kernels.rotary import Rotation
from engine.kernels.team import Worker, torch_team
from engine.models.config import DecoderConfig
from engine.pool import KVPool, LayerKV

# What the threads of a team are told: an int64 array, by these indices. Addresses are in bytes.
NEXT, JOINED, ITEMS, PARTS, PAGE_SIZE, CONTEXT, WIDTH, Q, K, V, TABLES, LENGTHS, SCORES, OUT = (
    range(14)
)


class NumbaAttention(TorchAttention):
    """Decode rows by the compiled loop, prefill chunks as torch does them."""

    def __init__(self, config: DecoderConfig, pool: KVPool) -> None:
        super().__init__(config, pool)
        narrow = pool.layers[0].k.dtype == torch.bfloat16
        group = config.heads // config.kv_heads
        self.worker = compile_worker(config.head_dim, config.kv_heads, group, narrow)
        self.team = torch_team()
        self._scores = np.empty(0, dtype=np.float32)

    def plan(self, batch: Batch) -> NumbaStep:
        rotation = self._rotations.at(torch.from_numpy(batch.positions))
        return NumbaStep(self, rotation, batch)

    def scores(self, threads: int) -> npt.NDArray[np.float32]:
        """Scratch: one row's scores of all query heads, for every thread of the team."""
        size = threads * self.config.heads * self.config.context
        if len(self._scores) < size:
            self._scores = np.empty(size, dtype=np.float32)
        return self._scores


class NumbaStep(Step):
    def __init__(self, backend: NumbaAttention, rotation: Rotation, batch: Batch) -> None:
        super().__init__(
            backend.config, backend.pool, rotation, batch, first_chunk=batch.num_decode
        )
        self._backend = backend
        self._rows = batch.num_decode
        self._threads = torch.get_num_threads()
        self._batch = batch  # its buffers are read by address
        self._arguments = self._describe(batch)

    def attend_spans(self, q: Tensor, kv: LayerKV, mixed: Tensor) -> None:
        if self._rows:
            mixed[: self._rows] = self._decode(q[: self._rows], kv)
        super().attend_spans(q, kv, mixed)

    def _decode(self, q: Tensor, kv: LayerKV) -> Tensor:
        """[rows, heads, head_dim] → the same in fp32."""
        scaled = q.float().contiguous().mul_(self._config.head_dim**-0.5)
        out = torch.empty_like(scaled)
        told = self._arguments
        told[NEXT] = told[JOINED] = 0
        told[Q], told[OUT] = scaled.data_ptr(), out.data_ptr()
        told[K], told[V] = kv.k.data_ptr(), kv.v.data_ptr()
        self._backend.team(self._backend.worker, told.ctypes.data, self._threads)
        return out

    def _describe(self, batch: Batch) -> npt.NDArray[np.int64]:
        """What is the same in all layers."""
        config, rows = self._config, batch.num_decode
        parts = 1 if rows >= 2 * self._threads else config.kv_heads
        told = np.zeros(14, dtype=np.int64)
        told[ITEMS], told[PARTS] = rows * parts, parts
        told[PAGE_SIZE], told[CONTEXT] = self._pool.page_size, config.context
        told[WIDTH] = batch.tables.strides[0] // batch.tables.itemsize
        told[TABLES], told[LENGTHS] = batch.tables.ctypes.data, batch.kv_lengths.ctypes.data
        told[SCORES] = self._backend.scores(self._threads).ctypes.data
        return told


# --------------------------------------------------------------------------- compiled


@intrinsic
def _pointer(_context: Any, _address: Any) -> Any:
    """An address in an integer → a pointer."""

    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.intp), generate


@intrinsic
def _claim(_context: Any, _address: Any) -> Any:
    """Add one to the int64 at an address, atomically; what it was before."""

    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        counter = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.IntType(64)(1), "seq_cst")

    return types.int64(types.intp), generate


@intrinsic
def _widen(_context: Any, value: Any) -> Any:
    """A stored number → fp32. bf16, read as uint16, is the upper half of one."""

    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        if value == types.float32:
            return arguments[0]
        bits = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(bits, ir.IntType(32)(16)), ir.FloatType())

    return types.float32(value), generate


@njit(fastmath=True, inline="always")
def _exp(x: Any) -> Any:
    """e^x for x ≤ 0, to 2e-7 relative: 2^whole by the exponent bits, 2^fraction by a polynomial.
    Written out so that it runs in all lanes; the library's runs in one."""
    y = max(x * np.float32(1.4426950408889634), np.float32(-126.0))
    whole = np.floor(y)
    f = y - whole
    p = np.float32(1.535336188319500e-4)
    p = p * f + np.float32(1.339887440266574e-3)
    p = p * f + np.float32(9.618437357674640e-3)
    p = p * f + np.float32(5.550332471162809e-2)
    p = p * f + np.float32(2.402264791363012e-1)
    p = p * f + np.float32(6.931472028550421e-1)
    p = p * f + np.float32(1.0)
    bits = np.float32(p).view(np.int32) + (np.int32(whole) << np.int32(23))
    return np.int32(bits).view(np.float32)


@njit(fastmath=True)
def _softmax(scores: Any) -> None:
    highest = np.float32(-3e38)
    for t in range(len(scores)):
        highest = max(highest, scores[t])
    total = np.float32(0)
    for t in range(len(scores)):
        scores[t] = _exp(scores[t] - highest)
        total += scores[t]
    scale = np.float32(1) / total
    for t in range(len(scores)):
        scores[t] *= scale


@njit(fastmath=True, forceinline=True)
def _score(q: Any, k: Any, table: Any, heads: Any, scores: Any) -> None:
    """scores[query head, token] = q · k, for the key heads [heads[0], heads[1])."""
    length, page_size, head_dim = scores.shape[1], k.shape[1], k.shape[3]
    group = len(q) // k.shape[2]
    for start in range(0, length, page_size):
        page = table[start // page_size]
        for head in range(heads[0], heads[1]):
            for t in range(min(page_size, length - start)):
                for g in range(group):
                    total = np.float32(0)
                    for d in range(head_dim):
                        total += q[head * group + g, d] * _widen(k[page, t, head, d])
                    scores[head * group + g, start + t] = total


@njit(fastmath=True, forceinline=True)
def _mix(v: Any, table: Any, heads: Any, scores: Any, out: Any) -> None:
    """out[query head] = Σ scores[query head, token] · v[token]"""
    length, page_size, head_dim = scores.shape[1], v.shape[1], v.shape[3]
    group = len(out) // v.shape[2]
    for head in range(heads[0] * group, heads[1] * group):
        out[head, :] = np.float32(0)
    for start in range(0, length, page_size):
        page = table[start // page_size]
        for head in range(heads[0], heads[1]):
            for t in range(min(page_size, length - start)):
                for g in range(group):
                    weight = scores[head * group + g, start + t]
                    for d in range(head_dim):
                        out[head * group + g, d] += weight * _widen(v[page, t, head, d])


@functools.cache
def compile_worker(head_dim: int, kv_heads: int, group: int, narrow: bool) -> Worker:
    """The address of the team's function for one shape. `group`: query heads a key head;
    `narrow`: keys and values are bf16. The sizes are constants to the compiler, and the only
    things that the function closes over, so that numba's cache on disk knows it again."""
    stored = np.uint16 if narrow else np.float32
    heads = kv_heads * group

    def work(address: Any) -> None:
        told = carray(address, 14, np.int64)
        claims = told.ctypes.data
        parts, width = told[PARTS], told[WIDTH]
        rows, heads_of_part = told[ITEMS] // parts, kv_heads // parts
        pages = (1 << 40, told[PAGE_SIZE], kv_heads, head_dim)
        k, v = carray(_pointer(told[K]), pages, stored), carray(_pointer(told[V]), pages, stored)
        q = carray(_pointer(told[Q]), (rows, heads, head_dim), np.float32)
        out = carray(_pointer(told[OUT]), (rows, heads, head_dim), np.float32)
        tables = carray(_pointer(told[TABLES]), (rows, width), np.int64)
        lengths = carray(_pointer(told[LENGTHS]), (rows,), np.int64)
        room = heads * told[CONTEXT]
        slot = _claim(claims + 8 * JOINED)
        scratch = carray(_pointer(told[SCORES] + 4 * slot * room), (room,), np.float32)
        while True:
            item = _claim(claims + 8 * NEXT)
            if item >= told[ITEMS]:
                return
            row, first = item // parts, item % parts * heads_of_part
            part = (first, first + heads_of_part)
            scores = scratch[: heads * lengths[row]].reshape((heads, lengths[row]))
            _score(q[row], k, tables[row], part, scores)
            for head in range(part[0] * group, part[1] * group):
                _softmax(scores[head])
            _mix(v, tables[row], part, scores, out[row])

    shape = types.void(types.voidptr)
    try:
        compiled = cfunc(shape, cache=True)(work)
    except RuntimeError:  # there is no folder that may be written to: compile at each start
        compiled = cfunc(shape)(work)
    address: int = compiled.address
    return address
