"""What one step is padded to, and the block of numbers that describes it to the device.

Problem. A step's description is a dozen small arrays. Copied one by one they cost 12 µs each on the
host; and a CUDA graph reads every address that it was captured with.

Choice. All arrays of a step lie in one block, at offsets that its `Shape` alone decides. The host
fills a pinned block, one asynchronous copy brings it over, and the kernels read views of the
device's block. There are two pinned blocks, because the copy of one step may still wait when the
next is filled, and one block on the device, because steps run one after another.

    rows     d₀ d₁ · · | p₀ p₀ p₀ p₁ p₁ ·       decode rows, then prompt rows, each padded (·)
    samples  d₀ d₁ · · | p₀ p₁                  a logit row for each decode row and each chunk

Padding computes on token 0 at position 0, stores nothing (slot −1) and attends to nothing.

Rejected: exact sizes (a graph for every batch); one ladder for both halves (a prompt of 300 tokens
beside two decodes would be padded as if either could be long).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DECODE = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512)
"""Rows that decodes are padded to."""
DECODE_BESIDE = (16, 64, 128, 256, 512)
"""The same beside prompts, where there is more to pad them with."""
PREFILL = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Rows that prompts are padded to where a graph is worth it."""
CHUNKS = (8, 32, 128, 512)
"""Prompts in one step: few sizes, since each is compiled."""
ALONE = 256
"""Beyond the ladder, one long prompt alone is padded to multiples of this: its attention is planned
once a size."""
ALIGN = 16


@dataclass(frozen=True, slots=True)
class Shape:
    decode: int
    prefill: int = 0
    chunks: int = 0
    """Prompts that the prefill rows may belong to."""
    prefix: bool = False
    """Whether decode rows read shared prefixes together."""
    alone: bool = False
    """Whether the prompt rows are one prompt's from its first token on, and there are no others:
    attention then needs no pages."""

    @property
    def rows(self) -> int:
        return self.decode + self.prefill

    @property
    def samples(self) -> int:
        return self.decode + self.chunks

    @property
    def small(self) -> bool:
        """Whether launches cost more than a graph of this shape is worth keeping."""
        return self.prefill <= PREFILL[-1] and self.chunks <= CHUNKS[1]


def shape_for(
    decode: int, prefill: int, chunks: int, *, prefix: bool = False, alone: bool = False
) -> Shape:
    """The least padding for so many decode rows, prompt rows and prompts."""
    if not prefill:
        return Shape(_at_least(DECODE, decode), prefix=prefix)
    if alone:
        return Shape(0, _at_least(PREFILL, prefill, beyond=ALONE), CHUNKS[0], alone=True)
    rows = _at_least(PREFILL, prefill)
    beside = _at_least(DECODE_BESIDE, decode) if decode else 0
    return Shape(beside, rows, _at_least(CHUNKS, chunks), prefix)


def shapes_ahead(max_running: int, max_tokens: int, *, prefixes: bool, dense: bool) -> list[Shape]:
    """What steps of a model will be padded to, the likeliest first: all that are worth a graph, and
    of the larger ones as many as there are kernels to compile."""
    decode = [Shape(rows) for rows in DECODE if rows <= _at_least(DECODE, max_running)]
    shared = [Shape(shape.decode, prefix=True) for shape in decode if prefixes and shape.decode > 1]
    rows = [count for count in PREFILL if count <= max_tokens]
    beside = [n for n in DECODE_BESIDE if n <= _at_least(DECODE_BESIDE, max_running)]
    one = [Shape(0, count, CHUNKS[0], alone=True) for count in rows if dense]
    found = [*decode[:6], *one, *(Shape(0, count, CHUNKS[0]) for count in rows), *decode[6:]]
    found += [
        Shape(n, count, chunks) for chunks in CHUNKS[:2] for count in rows for n in (0, *beside)
    ]
    found += shared
    if max_tokens > PREFILL[-1]:
        large = min(max_tokens, 2 * PREFILL[-1])
        found += [Shape(0, large, chunks) for chunks in CHUNKS]
        longer = range(PREFILL[-1] + ALONE, max_tokens + 1, ALONE)
        found += [Shape(0, count, CHUNKS[0], alone=True) for count in longer if dense]
    return list(dict.fromkeys(found))


def _at_least(ladder: tuple[int, ...], count: int, beyond: int = 64) -> int:
    """The first step of the ladder that holds `count`; multiples of `beyond` above its end."""
    at = bisect_left(ladder, count)
    return ladder[at] if at < len(ladder) else -(-count // beyond) * beyond


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step's arrays: views of the device's block. All int32 but for what says otherwise."""

    updates_at: Tensor
    """int64 [decode] which entries of the flat block tables change"""
    seeds: Tensor
    """int64 [samples]"""
    updates: Tensor
    """[decode] … and to which page"""
    source: Tensor
    """[rows] a token id; or −1 − i: the i-th token of `drawn`, which the host has not read"""
    positions: Tensor
    """[rows]"""
    slots: Tensor
    """[rows] where key and value go: page · page_size + offset"""
    table_rows: Tensor
    """[samples] which row of the block tables belongs to each decode row and chunk"""
    lengths: Tensor
    """[decode] context, the row itself included; 0: padding"""
    starts: Tensor
    """[chunks + 1] first row of each chunk among the prompt rows; then the end, repeated"""
    contexts: Tensor
    """[chunks] context of each chunk's last row, itself included"""
    sample_rows: Tensor
    """[samples] the row that each sample's logits come from"""
    draw_at: Tensor
    """[samples] the position of the token that is drawn"""
    top_k: Tensor
    """[samples], as the next three, which are fp32: how to draw"""
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor


Arrays = dict[str, npt.NDArray[np.generic]]

_WIDE = {"updates_at": torch.int64, "seeds": torch.int64}
_FLOAT = {"temperature": torch.float32, "top_p": torch.float32, "min_p": torch.float32}
_TYPES = {field.name: torch.int32 for field in fields(Step)} | _WIDE | _FLOAT


def _sizes(shape: Shape) -> dict[str, int]:
    by_row = dict.fromkeys(("source", "positions", "slots"), shape.rows)
    by_decode = dict.fromkeys(("updates_at", "updates", "lengths"), shape.decode)
    by_chunk = {"starts": shape.chunks + 1, "contexts": shape.chunks}
    return {name: {**by_row, **by_decode, **by_chunk}.get(name, shape.samples) for name in _TYPES}


def block_bytes(shape: Shape) -> int:
    """Bytes of a step's block."""
    return sum(_padded(size * _TYPES[name].itemsize) for name, size in _sizes(shape).items())


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _views(block: Tensor, shape: Shape) -> dict[str, Tensor]:
    views, at = {}, 0
    for name, size in _sizes(shape).items():
        dtype = _TYPES[name]
        views[name] = block[at : at + size * dtype.itemsize].view(dtype)
        at += _padded(size * dtype.itemsize)
    return views


class Blocks:
    """The pinned blocks and the device's. Owned by one runner."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        """`capacity`: bytes of the largest step."""
        pinned = device.type == "cuda"
        self._hosts = [
            torch.zeros(capacity, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)
        ]
        self._device = torch.zeros(capacity, dtype=torch.uint8, device=device)
        self._steps: dict[Shape, Step] = {}
        self._arrays: dict[tuple[int, Shape], Arrays] = {}

    @property
    def capacity(self) -> int:
        return len(self._device)

    def arrays(self, which: int, shape: Shape) -> Arrays:
        """The numpy views of pinned block `which` (0 or 1)."""
        key = (which, shape)
        if key not in self._arrays:
            views = _views(self._hosts[which], shape)
            self._arrays[key] = {name: view.numpy() for name, view in views.items()}
        return self._arrays[key]

    def step(self, shape: Shape) -> Step:
        """The device's views."""
        if shape not in self._steps:
            self._steps[shape] = Step(**_views(self._device, shape))
        return self._steps[shape]

    def upload(self, which: int, shape: Shape) -> None:
        """Copy pinned block `which` to the device, on the current stream."""
        size = block_bytes(shape)
        self._device[:size].copy_(self._hosts[which][:size], non_blocking=True)
