"""Computes answers: continuous batching over a paged, tree-shaped KV cache. Start at loop.py."""
