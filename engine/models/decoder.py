"""The forward pass that all families share, written once.

    embed → layers × ( norm → qkv → attention → out, + residual
                       norm → gate·up → SiLU·mul → down, + residual ) → norm → head

What happens between the qkv product and the out product (head norms, rotation, storing keys and
values, attending) is an injected object, because that is what differs between a CPU and a GPU; the
rest is the same text for both. Rows are tokens of any mixture of sequences; only attention knows
where one ends and the next begins.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import embedding

from engine.kernels.activation import silu_mul
from engine.kernels.norm import rms_norm
from engine.models.config import DecoderConfig
from engine.models.weights import DecoderWeights, HeadNorms, LayerWeights


class Attention(Protocol):
    """One step's attention, made from its batch and called once a layer."""

    def attend(self, layer: int, qkv: Tensor, norms: HeadNorms | None) -> Tensor:
        """[rows, q_size + 2 · kv_size] → [rows, q_size]. Normalises and rotates queries and keys,
        stores keys and values in the layer's pages, and attends each row to its sequence up to and
        including itself. May overwrite `qkv`."""
        ...


class Decoder:
    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights

    def forward(self, tokens: Tensor, attention: Attention, rows: Tensor) -> Tensor:
        """Store the keys and values of all `tokens` [rows] and return logits [len(rows), vocab] of
        the rows numbered by `rows`, the only ones that a next token is drawn from."""
        x = embedding(tokens, self.weights.embed)
        last = len(self.weights.layers) - 1
        for index, layer in enumerate(self.weights.layers):
            mixed = attention.attend(index, self._qkv(x, layer), layer.head_norms)
            if index == last and len(rows) < len(x):
                x, mixed = x[rows], mixed[rows]  # the other rows were needed for their KV alone
            x = self._finish_layer(x, mixed, layer)
        return self.weights.head(rms_norm(x, self.weights.norm, self.config.eps))

    def _qkv(self, x: Tensor, layer: LayerWeights) -> Tensor:
        return layer.qkv(rms_norm(x, layer.input_norm, self.config.eps))

    def _finish_layer(self, x: Tensor, mixed: Tensor, layer: LayerWeights) -> Tensor:
        x = layer.out(mixed).add_(x)
        gated = silu_mul(layer.gate_up(rms_norm(x, layer.post_norm, self.config.eps)))
        return layer.down(gated).add_(x)
