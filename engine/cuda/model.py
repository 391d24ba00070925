"""The forward pass on the GPU: the same layers as models/decoder.py, in as few launches as it
takes.

Two ways through a layer:

    one row       norm·qkv │ rope·store │ attend │ out·residual │ norm·gate_up·SiLU │ down·residual
                  by products of our own, which stream each weight once, take the neighbouring step
                  along and begin while the kernel before them ends
    more          norm │ qkv │ rope·store │ attend │ out │ residual·norm │ gate_up │ SiLU·mul │ down
                  with products by cuBLAS

Bounds on one card with B bytes/s of copy bandwidth: a decode step reads all weights once, so it
takes at least weight bytes / B; a prompt's products take 2 · weights · tokens / FLOP/s.

Everything launched here depends on the step's `Shape` and on device memory at fixed addresses,
and on nothing else, so a captured graph of it can be replayed over the next step's block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cuda.layout import Shape, Step
from engine.cuda.weights import product_of
from engine.kernels.gpu.activation import silu_mul
from engine.kernels.gpu.attend import Scratch
from engine.kernels.gpu.decode import decode_attention, decode_splits
from engine.kernels.gpu.dense import dense_attention
from engine.kernels.gpu.embed import embed
from engine.kernels.gpu.extend import extend_attention, extend_splits
from engine.kernels.gpu.gemv import skinny, skinny_fits
from engine.kernels.gpu.norm import add_rms_norm, rms_norm
from engine.kernels.gpu.prefix import PREFIX_SPLITS, PrefixPlan, prefix_attention
from engine.kernels.gpu.rope import rope_store, rope_table
from engine.models.decoder import Decoder
from engine.models.weights import LayerWeights
from engine.pool import KVPool


@dataclass(frozen=True, slots=True, eq=False)
class Paged:
    """What attention reads besides the step: one for each forward pass."""

    tables: Tensor
    """[samples, max_pages] of this step's decode rows and chunks"""
    step: Step
    shape: Shape


class TritonModel:
    """One model's weights, pages and scratch on one GPU. All launches go to the current stream."""

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        plan: PrefixPlan,
        *,
        max_rows: int,
        max_samples: int,
        sms: int,
    ) -> None:
        """`max_rows`: decode rows of a step at most; `max_samples`: logits of a step that is worth
        a graph; `sms`: multiprocessors of the card."""
        config = decoder.config
        device = decoder.weights.embed.device
        self.config = config
        self.plan = plan
        self._weights = decoder.weights
        self._pool = pool
        self._sms = sms
        self._rope = rope_table(config.rope, config.head_dim, config.context, device)
        self._scratch = Scratch.make(
            max_rows, config.heads, config.kv_heads, config.head_dim, device
        )
        # All graphs write their logits here: kept apart, they would take gigabytes.
        self._logits = decoder.weights.embed.new_empty(max_samples, config.vocab)
        self._scale = config.head_dim**-0.5
        weight = product_of(decoder.weights.layers[0].qkv).weight
        self._streams = skinny_fits(1, weight.dtype)

    def forward(self, step: Step, shape: Shape, tables: Tensor, drawn: Tensor) -> Tensor:
        """Logits [samples, vocab]. Stores the keys and values of all rows, and brings `tables`
        [sequences, max_pages] up to date first. `drawn`: tokens that earlier steps drew."""
        if shape.decode:
            tables.view(-1).index_copy_(0, step.updates_at, step.updates)
        paged = Paged(tables.index_select(0, step.table_rows), step, shape)
        x = self._weights.embed.new_empty(shape.rows, self.config.hidden)
        embed(step.source, drawn, self._weights.embed, x)
        if shape.rows == 1 and self._streams:
            return self._one_row(x, paged)
        return self._many_rows(x, paged)

    # -- many rows: products by cuBLAS -----------------------------------------------------------

    def _many_rows(self, x: Tensor, paged: Paged) -> Tensor:
        config, weights = self.config, self._weights
        normed = torch.empty_like(x)
        rms_norm(x, weights.layers[0].input_norm, config.eps, normed)
        last = len(weights.layers) - 1
        for index, layer in enumerate(weights.layers):
            mixed = self._attend(index, layer.qkv(normed), layer, paged)
            if index == last and paged.shape.prefill:
                # the other rows were needed for their keys and values alone
                x = x.index_select(0, paged.step.sample_rows)
                mixed = mixed.index_select(0, paged.step.sample_rows)
                normed = torch.empty_like(x)
            delta = self._feed_forward(layer.out(mixed), x, normed, layer)
            following = weights.norm if index == last else weights.layers[index + 1].input_norm
            add_rms_norm(delta, x, following, config.eps, normed)
        return self._head(normed)

    def _head(self, normed: Tensor) -> Tensor:
        """Logits. They are good until the next step's."""
        if len(normed) > len(self._logits):
            return self._weights.head(normed)
        weight = product_of(self._weights.head).weight
        return torch.mm(normed, weight.T, out=self._logits[: len(normed)])

    def _feed_forward(
        self, delta: Tensor, x: Tensor, normed: Tensor, layer: LayerWeights
    ) -> Tensor:
        add_rms_norm(delta, x, layer.post_norm, self.config.eps, normed)
        gated = x.new_empty(len(x), self.config.ffn)
        silu_mul(layer.gate_up(normed), gated)
        return layer.down(gated)

    # -- one row: products of our own ------------------------------------------------------------

    def _one_row(self, x: Tensor, paged: Paged) -> Tensor:
        config, weights, eps = self.config, self._weights, self.config.eps
        qkv = x.new_empty(1, config.q_size + 2 * config.kv_size)
        gated = x.new_empty(1, config.ffn)
        for index, layer in enumerate(weights.layers):
            one = product_of(layer.qkv)
            skinny(x, one.weight, qkv, bias=one.bias, norm=layer.input_norm, eps=eps)
            mixed = self._attend(index, qkv, layer, paged)
            one = product_of(layer.out)
            skinny(mixed, one.weight, x, bias=one.bias, residual=x)
            one = product_of(layer.gate_up)
            skinny(
                x, one.weight, gated, bias=one.bias, norm=layer.post_norm, eps=eps, silu_mul=True
            )
            one = product_of(layer.down)
            skinny(gated, one.weight, x, bias=one.bias, residual=x)
        logits = self._logits[:1]
        skinny(x, product_of(weights.head).weight, logits, norm=weights.norm, eps=eps)
        return logits

    # -- attention -------------------------------------------------------------------------------

    def _attend(self, index: int, qkv: Tensor, layer: LayerWeights, paged: Paged) -> Tensor:
        """[rows, q_size + 2 · kv_size] → [rows, q_size]"""
        config, step, shape = self.config, paged.step, paged.shape
        kv = self._pool.layers[index]
        rope_store(qkv, step.positions, step.slots, self._rope, kv, config.heads, layer.head_norms)
        if shape.alone:
            return dense_attention(qkv, config.heads, config.kv_heads, self._scale)
        q = qkv[:, : config.q_size]
        mixed = qkv.new_empty(len(qkv), config.q_size)
        if shape.decode:
            self._decode(q[: shape.decode], index, paged, mixed[: shape.decode])
        if shape.prefill:
            extend_attention(
                q[shape.decode :],
                kv,
                paged.tables[shape.decode :],
                step.starts,
                step.contexts,
                mixed[shape.decode :],
                scale=self._scale,
                splits=extend_splits(shape.prefill, config.heads, config.kv_heads, self._sms),
                scratch=self._scratch,
            )
        return mixed

    def _decode(self, q: Tensor, index: int, paged: Paged, mixed: Tensor) -> None:
        kv, shape = self._pool.layers[index], paged.shape
        if shape.prefix:
            prefix_attention(q, kv, self.plan, self._scratch, scale=self._scale)
        decode_attention(
            q,
            kv,
            paged.tables,
            paged.step.lengths,
            mixed,
            self._scratch,
            splits=decode_splits(shape.decode, self.config.kv_heads, self._sms),
            scale=self._scale,
            starts=self.plan.starts if shape.prefix else None,
            prefix_splits=PREFIX_SPLITS if shape.prefix else 0,
        )
