"""SiLU(gate) · up, the gated activation of every family here (Shazeer 2020)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def silu_mul(gate_up: Tensor) -> Tensor:
    """[rows, 2·ffn], the gates first → [rows, ffn]."""
    half = gate_up.shape[-1] // 2
    return silu(gate_up[:, :half]).mul_(gate_up[:, half:])
