"""The GPU runner's forward pass and draw in plain torch, slow and readable, on the CPU.

With these the runner's own part (padding, block tables, tokens that the host has not read, what is
in flight) is tested where there is no GPU; the kernels have their own twins and tests.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from engine.build import make_lane
from engine.cuda.draw import Drawing
from engine.cuda.layout import Shape, Step
from engine.cuda.runner import GpuRunner
from engine.kernels.activation import silu_mul
from engine.kernels.attention import rotated_heads
from engine.kernels.norm import rms_norm
from engine.kernels.rotary import table
from engine.lane import Lane
from engine.loading import load_decoder, read_checkpoint
from engine.models.decoder import Decoder
from engine.models.weights import LayerWeights
from engine.pool import KVPool, LayerKV, make_pool
from engine.sampler import Sampler, arrivals
from engine.scheduler import Limits
from engine.text import Text

CPU = torch.device("cpu")


class TwinModel:
    """`Model` of cuda/runner.py. Poisons what padding must not reach."""

    def __init__(self, decoder: Decoder, pool: KVPool) -> None:
        self._config = decoder.config
        self._weights = decoder.weights
        self._pool = pool
        config = decoder.config
        dtype = decoder.weights.embed.dtype
        self._rotations = table(config.rope, config.head_dim, config.context, dtype)
        self.shapes: list[Shape] = []

    def forward(self, step: Step, shape: Shape, tables: Tensor, drawn: Tensor) -> Tensor:
        self.shapes.append(shape)
        tables.view(-1)[step.updates_at] = step.updates
        source = step.source.long()
        tokens = torch.where(source >= 0, source, drawn[(-1 - source).clamp(min=0)].long())
        x = embedding(tokens, self._weights.embed)
        for index, layer in enumerate(self._weights.layers):
            x = self._layer(x, index, layer, step, shape, tables)
        x = rms_norm(x[step.sample_rows.long()], self._weights.norm, self._config.eps)
        return self._weights.head(x)

    def _layer(
        self, x: Tensor, index: int, layer: LayerWeights, step: Step, shape: Shape, tables: Tensor
    ) -> Tensor:
        eps = self._config.eps
        qkv = layer.qkv(rms_norm(x, layer.input_norm, eps))
        x = layer.out(self._attend(qkv, index, layer, step, shape, tables)) + x
        return layer.down(silu_mul(layer.gate_up(rms_norm(x, layer.post_norm, eps)))) + x

    def _attend(
        self,
        qkv: Tensor,
        index: int,
        layer: LayerWeights,
        step: Step,
        shape: Shape,
        tables: Tensor,
    ) -> Tensor:
        config, kv = self._config, self._pool.layers[index]
        rotation = self._rotations.at(step.positions.long())
        q, k = rotated_heads(qkv, config, layer.head_norms, rotation)
        kept = step.slots >= 0
        at = step.slots[kept].long()
        kv.k_slots[at] = k[kept].flatten(1)
        kv.v_slots[at] = qkv[kept, config.q_size + config.kv_size :]
        mixed = torch.zeros(len(qkv), config.heads, config.head_dim)
        rows = [tables[row] for row in step.table_rows.tolist()]
        for row, length in enumerate(step.lengths.tolist()):
            if length:
                mixed[row] = _one(q[row], kv, rows[row], length)
        for chunk, context in enumerate(step.contexts.tolist()):
            first, last = step.starts[chunk : chunk + 2].tolist()
            for row in range(first, last):
                length = context - (last - 1 - row)
                pages = rows[shape.decode + chunk]
                mixed[shape.decode + row] = _one(q[shape.decode + row], kv, pages, length)
        return mixed.flatten(1)


def _one(q: Tensor, kv: LayerKV, pages: Tensor, length: int) -> Tensor:
    """One query [heads, head_dim] over `length` tokens of its pages."""
    size = kv.k.shape[1]
    used = pages[: -(-length // size)].long()
    k, v = (side[used].flatten(0, 1)[:length] for side in (kv.k, kv.v))
    group = len(q) // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    weights = torch.softmax(torch.einsum("hd,thd->ht", q, k) * q.shape[1] ** -0.5, dim=-1)
    return torch.einsum("ht,thd->hd", weights, v)


class TwinDraw:
    """`Draw` of cuda/runner.py: greedy, plain temperatures, and what the CPU's sampler does."""

    def greedy(self, logits: Tensor, tokens: Tensor) -> None:
        tokens.copy_(logits.argmax(dim=-1))

    def draw(self, logits: Tensor, step: Step, drawing: Drawing, tokens: Tensor) -> None:
        self.greedy(logits, tokens)
        for at, sequence in drawing:
            assert int(step.draw_at[at]) == sequence.known + sequence.ahead
            assert int(step.seeds[at]) == sequence.params.seed
            if not sequence.ahead:
                tokens[at] = Sampler().draw(logits[at : at + 1], [sequence])[0].token
            elif sequence.params.temperature > 0:
                chances = torch.softmax(logits[at] / sequence.params.temperature, dim=-1).numpy()
                race = arrivals(sequence.params.seed, int(step.draw_at[at]), len(chances))
                tokens[at] = int((chances / race).argmax())


def twin_runner(
    decoder: Decoder, *, page_size: int, num_pages: int, limits: Limits | None = None
) -> GpuRunner:
    """A GPU runner on the CPU, in fp32. Its pages are poisoned: what was not stored is NaN."""
    limits = limits or Limits()
    config = decoder.config
    pool = make_pool(config, page_size=page_size, num_pages=num_pages, dtype=torch.float32)
    for layer in pool.layers:
        layer.k.fill_(np.nan)
        layer.v.fill_(np.nan)
    return GpuRunner(
        TwinModel(decoder, pool),
        TwinDraw(),
        device=CPU,
        page_size=page_size,
        max_tokens=limits.max_batched_tokens,
        max_running=limits.max_running,
        max_pages=-(-config.context // page_size),
    )


def twin_lane(
    directory: Path,
    name: str = "small",
    *,
    num_pages: int = 256,
    page_size: int = 8,
    limits: Limits | None = None,
) -> Lane:
    """A lane over a tiny checkpoint that runs as on a GPU, two steps deep."""
    checkpoint = read_checkpoint(directory)
    limits = limits or Limits()
    decoder = load_decoder(checkpoint, torch.float32)
    return make_lane(
        name,
        checkpoint,
        Text.load(directory),
        twin_runner(decoder, page_size=page_size, num_pages=num_pages, limits=limits),
        num_pages=num_pages,
        page_size=page_size,
        limits=limits,
        clock=time.monotonic,
    )
