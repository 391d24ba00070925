"""Weights as the GPU multiplies with them: as they lie, no packed copy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import linear

from engine.kernels.linear import Linear


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """x · Wᵀ + b by cuBLAS; kernels that fuse it with its neighbours take the tensors."""

    weight: Tensor
    """[out, in]"""
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def product_of(layer: Linear) -> Product:
    """The tensors of a linear layer that was assembled with `Product`."""
    assert isinstance(layer, Product), "weights for the GPU are assembled with Product"
    return layer
