"""x · Wᵀ + b with a weight that is laid out once for the machine that multiplies.

Problem: on a CPU a decode step is mostly matrix products of a few rows with every weight of the
model. `torch.nn.functional.linear` hands the weight over as it lies, and the library reorders it
into cache blocks on *every* call (bf16) or takes a generic path (fp32).

Choice: oneDNN reorders each weight once, at load, and multiplies with the reordered copy. All
products of a 42M-parameter Llama's twelve layers, two threads of a Zen 5: 1 row 3.3 → 1.4 ms in
bf16 and 7.4 → 2.1 ms in fp32; 32 rows 5.8 → 3.5 and 20.9 → 6.4 ms. It is what torch's own compiler
emits for frozen weights.

Rejected: oneDNN's fused post-operations (SiLU on the gate, product with the up projection): two
products of half the width cost more than one of the whole plus two cheap passes.

Price: the reordered weight is opaque, so a tied embedding is held twice (12,288 × 512 in bf16:
13 MB), and the operator is private to torch: `plain` below is the twin that is always there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
"""[rows, in] → [rows, out]"""

PACK = "_reorder_linear_weight"

TYPICAL_ROWS = 32
"""For which oneDNN picks its block layout; measured to serve 1 to 256 rows equally well."""


def plain(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The readable twin, and the path where oneDNN is not."""

    def apply(x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)

    return apply


def packed(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """`weight` [out, in], bf16 or fp32, on the CPU. The result keeps a reordered copy of it."""
    mkldnn: Any = torch.ops.mkldnn
    blocks = mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
    multiply = mkldnn._linear_pointwise.default
    no_args: list[Any] = []

    def apply(x: Tensor) -> Tensor:
        result: Tensor = multiply(x, blocks, bias, "none", no_args, "")
        return result

    return apply


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest that this weight's device and type have."""
    fits = weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32)
    return packed(weight, bias) if fits and can_pack() else plain(weight, bias)


def can_pack() -> bool:
    built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    mkldnn = torch.ops.mkldnn
    return built and all(hasattr(mkldnn, name) for name in ("_linear_pointwise", PACK))
