"""Where keys and values live: fixed-size pages in one pair of tensors a model.

    k, v  [layers, num_pages, page_size, kv_heads, head_dim]

A token's slot is page · page_size + offset, so storing is one row copy into the flat view
[slots, kv_heads · head_dim], and a page is one contiguous block of all heads (8 KB for 16 tokens of
4 × 64 in bf16): gathering on a CPU copies whole pages, and a GPU kernel that walks a block table
reads each page in one run. Keeping a head's tokens together instead would suit a kernel of one head
a program, but makes every store a scatter and every gathered prefix a transposition.

Layers come first because a step reads one layer of many pages, never many layers of one page.
The tensors are zeroed: a padded or half-filled page holds numbers, and 0 · number is 0 where
0 · NaN is not.

Which page belongs to whom is radix/'s business; here are only the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.config import DecoderConfig


class PoolTooSmall(Exception):
    """The memory given for keys and values does not hold one full context."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerKV:
    """One layer's pages, and the same memory by slot."""

    k: Tensor
    """[num_pages, page_size, kv_heads, head_dim]"""
    v: Tensor
    k_slots: Tensor
    """[num_pages · page_size, kv_heads · head_dim]"""
    v_slots: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class KVPool:
    page_size: int
    num_pages: int
    layers: tuple[LayerKV, ...]

    @property
    def kv_bytes(self) -> int:
        return sum(2 * layer.k.numel() * layer.k.element_size() for layer in self.layers)


def page_bytes(config: DecoderConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page through all layers, keys and values."""
    return 2 * config.layers * page_size * config.kv_size * dtype.itemsize


def num_pages_for(config: DecoderConfig, page_size: int, dtype: torch.dtype, kv_bytes: int) -> int:
    """How many pages `kv_bytes` hold; PoolTooSmall when a full context does not fit."""
    pages = kv_bytes // page_bytes(config, page_size, dtype)
    needed = -(-config.context // page_size)
    if pages < needed:
        wanted = needed * page_bytes(config, page_size, dtype)
        raise PoolTooSmall(
            f"{kv_bytes:,} bytes for keys and values hold {pages * page_size:,} tokens, but one "
            f"context of this model has {config.context:,}: give it at least {wanted:,} bytes, or "
            "lower the context length"
        )
    return int(pages)


def make_pool(
    config: DecoderConfig,
    *,
    page_size: int,
    num_pages: int,
    dtype: torch.dtype,
    device: str = "cpu",
) -> KVPool:
    shape = (config.layers, num_pages, page_size, config.kv_heads, config.head_dim)
    k = torch.zeros(shape, dtype=dtype, device=device)
    v = torch.zeros(shape, dtype=dtype, device=device)
    slots = (num_pages * page_size, config.kv_size)
    layers = tuple(LayerKV(a, b, a.view(slots), b.view(slots)) for a, b in zip(k, v, strict=True))
    return KVPool(page_size, num_pages, layers)
