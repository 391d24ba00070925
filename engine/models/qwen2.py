"""Qwen2 and Qwen2.5: a bias on the query, key and value projections, none on the output."""

from __future__ import annotations

from engine.models.config import DecoderConfig, Raw, base, refuse_window, switch


def configure(raw: Raw) -> DecoderConfig:
    """`sliding_window` is written in every config and means nothing unless `use_sliding_window`."""
    if switch(raw, "use_sliding_window", False):
        refuse_window(raw, raw.get("sliding_window"))
    return base(raw, qkv_bias=True)
