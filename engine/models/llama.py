"""Llama 2, 3 and 3.x, and everything published in their shape: SmolLM, SmolLM2, our own models."""

from __future__ import annotations

from engine.models.config import DecoderConfig, Raw, base, switch


def configure(raw: Raw) -> DecoderConfig:
    """`attention_bias` puts a bias on all four attention projections. `pretraining_tp` asks for
    the same product in slices, so it changes nothing here."""
    biased = switch(raw, "attention_bias", False)
    return base(raw, qkv_bias=biased, out_bias=biased)
