"""RMSNorm (Zhang & Sennrich 2019): x / √(mean(x²) + eps) · weight, summed in fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension. One call of torch, which upcasts inside: written out it is six."""
    return torch.rms_norm(x, weight.shape, weight, eps)
