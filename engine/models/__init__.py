"""Decoder-only transformers: one file per family reads its config, decoder.py computes all."""
