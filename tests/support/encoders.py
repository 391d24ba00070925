"""Encoders without a model: words become random directions, a text their sum."""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass, field

import numpy as np

from cache.embed import TextTooLong, Vector


def bag_vector(text: str, dimensions: int = 64) -> Vector:
    """Texts that share words are near; the same words in another order are the same."""
    total = np.full(dimensions, 1e-6, np.float64)
    for word in text.lower().split():
        total += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(dimensions)
    unit: Vector = (total / np.linalg.norm(total)).astype(np.float32)
    return unit


@dataclass
class BagEncoder:
    """Counts what it encodes; waits at `gate` if one is set; refuses texts over `window` words."""

    window: int = 100
    dimensions: int = 64
    fingerprint: str = "bag"
    encoded: list[str] = field(default_factory=list)
    gate: threading.Event | None = None

    def encode(self, text: str) -> Vector:
        self.encoded.append(text)
        if self.gate is not None:
            self.gate.wait(5)
        if len(text.split()) > self.window:
            raise TextTooLong(f"{len(text.split())} tokens are over the window of {self.window}")
        return bag_vector(text, self.dimensions)

    def tokens(self, text: str) -> int:
        return len(text.split())
