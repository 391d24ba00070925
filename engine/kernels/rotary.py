"""Rotary position embedding (Su et al. 2021) in the half-split form that checkpoints use.

Dimension i of a head turns together with dimension i + half, by position · frequency[i]. Writing
the two halves as one swap makes the whole rotation three passes for queries and keys together:

    x' = x · cos + swap(x) · sin,   swap(a, b) = (b, a),   sin = (−sin, +sin)

The table is made once in fp32 for the whole context (1,024 × 64: 0.5 MB) and read by position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.config import Rope


@dataclass(frozen=True, slots=True)
class Rotation:
    """Factors for some positions, each [positions, 1, head_dim]: broadcast over the heads."""

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> Rotation:
        return Rotation(self.cos.index_select(0, positions), self.sin.index_select(0, positions))


def frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions, fp32, [head_dim / 2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / rope.theta**exponent
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    return _llama3(plain, rope)


def _llama3(plain: Tensor, rope: Rope) -> Tensor:
    """Waves longer than original/low are stretched by `factor`, those shorter than original/high
    stay, and between the two the stretch is blended linearly in 1/wavelength."""
    turns = rope.original_context * plain / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    keep = ((turns - rope.low_freq_factor) / span).clamp(0.0, 1.0)
    return keep * plain + (1 - keep) * plain / rope.factor


def table(rope: Rope, head_dim: int, context: int, dtype: torch.dtype) -> Rotation:
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies(rope, head_dim))
    cos, sin = angles.cos(), angles.sin()
    return Rotation(
        torch.cat((cos, cos), dim=-1).to(dtype).unsqueeze(1),
        torch.cat((-sin, sin), dim=-1).to(dtype).unsqueeze(1),
    )


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """[rows, heads, head_dim] → the same, one position a row."""
    rows, heads, head_dim = x.shape
    swapped = x.view(rows, heads, 2, head_dim // 2).flip(2).view(x.shape)
    return torch.addcmul(x * rotation.cos, swapped, rotation.sin)
