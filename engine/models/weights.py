"""The tensors of a decoder: what a checkpoint calls them, and how they are laid out to compute.

All families name their tensors alike. Query, key and value become one product, as do gate and up:
a product of few rows costs what its weight weighs, plus a call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.linear import Linear, linear
from engine.models.config import DecoderConfig

Read = Callable[[str], Tensor]
"""The tensor of this name, in the type and on the device to compute with."""

Layout = Callable[[Tensor, Tensor | None], Linear]
"""Weight [out, in] and bias → the product, laid out for a device."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadNorms:
    """RMSNorm over each query and key head, [head_dim] each (Qwen3)."""

    q: Tensor
    k: Tensor
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    input_norm: Tensor
    qkv: Linear
    """[rows, hidden] → [rows, q_size + 2 · kv_size]"""
    head_norms: HeadNorms | None
    out: Linear
    post_norm: Tensor
    gate_up: Linear
    """[rows, hidden] → [rows, 2 · ffn]"""
    down: Linear


@dataclass(frozen=True, slots=True, eq=False)
class DecoderWeights:
    embed: Tensor
    """[vocab, hidden]"""
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Linear


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this config must have."""
    hidden = config.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, hidden)
    for layer in range(config.layers):
        for name, shape in _layer_shapes(config).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes


def _layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    hidden, ffn, q, kv = config.hidden, config.ffn, config.q_size, config.kv_size
    products = {
        "self_attn.q_proj": (q, hidden, config.qkv_bias),
        "self_attn.k_proj": (kv, hidden, config.qkv_bias),
        "self_attn.v_proj": (kv, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, q, config.out_bias),
        "mlp.gate_proj": (ffn, hidden, config.mlp_bias),
        "mlp.up_proj": (ffn, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, ffn, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for name, (rows, columns, biased) in products.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if biased:
            shapes[f"{name}.bias"] = (rows,)
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = (config.head_dim,)
        shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    return shapes


def assemble(config: DecoderConfig, read: Read, product: Layout = linear) -> DecoderWeights:
    """Read every tensor of `tensor_shapes` once and lay it out. The caller has checked shapes.
    `product` lays a weight out for the device that multiplies."""
    embed = read("model.embed_tokens.weight")
    head = embed if config.tied else read("lm_head.weight")
    return DecoderWeights(
        embed=embed,
        layers=tuple(
            _assemble_layer(config, read, layer, product) for layer in range(config.layers)
        ),
        norm=read("model.norm.weight"),
        head=product(head, None),
    )


def _assemble_layer(config: DecoderConfig, read: Read, layer: int, product: Layout) -> LayerWeights:
    name = f"model.layers.{layer}"

    def fused(parts: tuple[str, ...], biased: bool) -> Linear:
        weight = torch.cat([read(f"{name}.{part}.weight") for part in parts])
        bias = torch.cat([read(f"{name}.{part}.bias") for part in parts]) if biased else None
        return product(weight, bias)

    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return LayerWeights(
        input_norm=read(f"{name}.input_layernorm.weight"),
        qkv=fused(qkv, config.qkv_bias),
        head_norms=_head_norms(config, read, name) if config.qk_norm else None,
        out=fused(("self_attn.o_proj",), config.out_bias),
        post_norm=read(f"{name}.post_attention_layernorm.weight"),
        gate_up=fused(("mlp.gate_proj", "mlp.up_proj"), config.mlp_bias),
        down=fused(("mlp.down_proj",), config.mlp_bias),
    )


def _head_norms(config: DecoderConfig, read: Read, name: str) -> HeadNorms:
    return HeadNorms(
        read(f"{name}.self_attn.q_norm.weight"),
        read(f"{name}.self_attn.k_norm.weight"),
        config.eps,
    )
