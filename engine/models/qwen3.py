"""Qwen3, dense: an RMSNorm on every query and key head before they are rotated."""

from __future__ import annotations

from engine.models.config import DecoderConfig, Raw, base, refuse_window, switch


def configure(raw: Raw) -> DecoderConfig:
    """`head_dim` does not follow from the other sizes; where a config leaves it out, it is 128."""
    if switch(raw, "use_sliding_window", False):
        refuse_window(raw, raw.get("sliding_window"))
    biased = switch(raw, "attention_bias", False)
    return base({"head_dim": 128, **raw}, qkv_bias=biased, out_bias=biased, qk_norm=True)
