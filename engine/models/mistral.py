"""Mistral: Llama's shape with a sliding window in its first version, without it in later ones."""

from __future__ import annotations

from engine.models.config import DecoderConfig, Raw, base, refuse_window


def configure(raw: Raw) -> DecoderConfig:
    """A config without `sliding_window` is one of the first version, whose window is 4,096."""
    refuse_window(raw, raw.get("sliding_window", 4096))
    return base(raw, qkv_bias=False)
