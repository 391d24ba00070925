"""What a decoder is made of, and how a family's config.json is read into it.

Every family's file turns its own config.json into a `DecoderConfig`; nothing after that asks which
family it is. What we do not compute is refused here by name: a feature that is ignored gives wrong
answers that nobody notices, a feature that is refused gives an error that somebody reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Raw = Mapping[str, Any]
"""A parsed config.json."""


class Unsupported(Exception):
    """The config asks for something that the engine does not compute. Mapped by loading.py."""


class BadValue(Exception):
    """The config lacks a value or has one that cannot be. Mapped by loading.py."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding. `kind` "linear" divides all frequencies by `factor`; "llama3"
    divides the low ones, keeps the high ones and blends between (Llama 3.1's scheme)."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes and switches of a decoder: pre-norm, gated SiLU, grouped-query attention, rotary."""

    architecture: str
    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    eps: float
    rope: Rope
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Number of weights, biases left out."""
        attention = self.hidden * (2 * self.q_size + 2 * self.kv_size)
        block = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * block + embeddings + self.hidden


def positive(raw: Raw, key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadValue(f'"{key}" must be a whole number above 0, not {value!r}')
    return value


def number(raw: Raw, key: str, default: float) -> float:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise BadValue(f'"{key}" must be a number, not {value!r}')
    return float(value)


def switch(raw: Raw, key: str, default: bool) -> bool:
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise BadValue(f'"{key}" must be true or false, not {value!r}')
    return value


def base(
    raw: Raw, *, qkv_bias: bool, out_bias: bool = False, qk_norm: bool = False
) -> DecoderConfig:
    """The part that the families share. A family's file checks what is its own and calls this."""
    refuse_features(raw)
    hidden, heads = positive(raw, "hidden_size"), positive(raw, "num_attention_heads")
    kv_heads = positive(raw, "num_key_value_heads", heads)
    head_dim = positive(raw, "head_dim", max(1, hidden // heads))
    if heads % kv_heads:
        raise BadValue(
            f'"num_attention_heads" ({heads}) must be a multiple of '
            f'"num_key_value_heads" ({kv_heads})'
        )
    if head_dim % 2:
        raise BadValue(f'"head_dim" must be even for rotary embeddings, not {head_dim}')
    return DecoderConfig(
        architecture=raw["architectures"][0],
        vocab=positive(raw, "vocab_size"),
        hidden=hidden,
        ffn=positive(raw, "intermediate_size"),
        layers=positive(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=positive(raw, "max_position_embeddings"),
        eps=number(raw, "rms_norm_eps", 1e-6),
        rope=read_rope(raw),
        tied=switch(raw, "tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=switch(raw, "mlp_bias", False),
        qk_norm=qk_norm,
    )


def refuse_features(raw: Raw) -> None:
    if (act := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise Unsupported(f'"hidden_act": {act!r} (only "silu" is computed)')
    if raw.get("quantization_config"):
        raise Unsupported('"quantization_config" (only float checkpoints are read)')
    if number(raw, "partial_rotary_factor", 1.0) != 1.0:
        raise Unsupported('"partial_rotary_factor" other than 1')
    if "sliding_attention" in (raw.get("layer_types") or ()):
        raise Unsupported('sliding-window attention ("layer_types" has "sliding_attention")')


def refuse_window(raw: Raw, window: object) -> None:
    """Refuse a sliding window that could ever be reached; one as long as the context is a no-op."""
    if window is None:
        return
    if not isinstance(window, int) or window < positive(raw, "max_position_embeddings"):
        raise Unsupported(
            f'sliding-window attention ("sliding_window": {window!r} is below '
            '"max_position_embeddings"; lower the latter to the window to use full attention)'
        )


def read_rope(raw: Raw) -> Rope:
    """transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise BadValue(f'"rope_parameters" must be an object, not {scaling!r}')
    if scaling and all(isinstance(value, Mapping) for value in scaling.values()):
        raise Unsupported('"rope_parameters" by layer type')
    if number(scaling, "partial_rotary_factor", 1.0) != 1.0:
        raise Unsupported('"partial_rotary_factor" other than 1')
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise Unsupported(f'rope scaling {kind!r} (only "default", "linear" and "llama3")')
    theta = number(scaling, "rope_theta", number(raw, "rope_theta", 10000.0))
    if kind == "default":
        return Rope(theta)
    rope = Rope(theta, kind, factor=number(scaling, "factor", 0.0))
    if rope.factor < 1:
        raise BadValue(f'rope scaling {kind!r} needs a "factor" of at least 1')
    return rope if kind == "linear" else _llama3(rope, scaling, raw)


def _llama3(rope: Rope, scaling: Raw, raw: Raw) -> Rope:
    low = number(scaling, "low_freq_factor", 1.0)
    high = number(scaling, "high_freq_factor", 4.0)
    if high <= low:
        raise BadValue('rope scaling "llama3" needs "high_freq_factor" above "low_freq_factor"')
    context = positive(raw, "max_position_embeddings")
    original = positive(scaling, "original_max_position_embeddings", context)
    return Rope(rope.theta, rope.kind, rope.factor, low, high, original)
