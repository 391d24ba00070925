"""Mooncake's conversations as prompts for bench/engine_gpu.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TRACE_BLOCK = 512
"""Tokens of a block in Mooncake's traces (Qin et al., FAST '25)."""
TRACE_SCALE = 8


def read_trace(path: Path, vocab: int) -> tuple[list[tuple[np.ndarray, int]], int]:
    """Prompts and answer lengths; and how many tokens stand in no earlier prompt's blocks."""
    asked, known, fresh = [], set(), 0
    for line in path.read_text().splitlines():
        told = json.loads(line)
        length = max(2, told["input_length"] // TRACE_SCALE)
        blocks = [
            np.random.default_rng(block).integers(10, vocab, TRACE_BLOCK // TRACE_SCALE)
            for block in told["hash_ids"]
        ]
        prompt = np.concatenate(blocks)[:length].astype(np.int32)
        fresh += sum(
            min(TRACE_BLOCK // TRACE_SCALE, length - at * TRACE_BLOCK // TRACE_SCALE)
            for at, block in enumerate(told["hash_ids"])
            if block not in known
        )
        known |= set(told["hash_ids"])
        asked.append((prompt, max(1, told["output_length"] // TRACE_SCALE)))
    return asked, fresh
