"""What a card reaches today, and in what least time it could do some work (engine_gpu.py)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.models.config import DecoderConfig


@dataclass(frozen=True)
class Card:
    name: str
    copy_bytes_s: float
    flop_s: float


def measure_card(device: torch.device) -> Card:
    """What this card reaches, today."""
    copied = _copy_s(1 << 32, device)
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
    b, out = torch.randn_like(a), torch.empty_like(a)
    product = _median_s(lambda: torch.mm(a, b, out=out))
    name = torch.cuda.get_device_name(device)
    return Card(name, 2 * (1 << 32) / copied, 2 * 8192**3 / product)


def _copy_s(size: int, device: torch.device) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return _median_s(lambda: target.copy_(source))


def _median_s(work: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return statistics.median(times)


@dataclass(frozen=True)
class Bound:
    """The least time of some work on a card."""

    config: DecoderConfig
    card: Card

    @property
    def weights(self) -> int:
        """Numbers that a decode step reads: all weights but an embedding of their own."""
        config = self.config
        return config.parameters - (0 if config.tied else config.vocab * config.hidden)

    @property
    def kv_token(self) -> int:
        return 2 * self.config.layers * self.config.kv_size * 2

    def decode_s(self, contexts: list[float], shared: float = 0.0) -> float:
        """One step of rows with so many tokens of their own, and `shared` ones for all."""
        read = 2 * self.weights + (sum(contexts) + shared) * self.kv_token
        rows = len(contexts)
        attended = sum(contexts) + rows * shared
        flops = 2 * self.weights * rows + self._attention(attended)
        return max(read / self.card.copy_bytes_s, flops / self.card.flop_s)

    def prefill_s(self, tokens: int, before: int = 0) -> float:
        """`tokens` behind `before` cached ones. The head is computed for one row."""
        linear = self.weights - self.config.vocab * self.config.hidden
        attended = tokens * before + tokens * tokens / 2
        flops = 2 * linear * tokens + self._attention(attended)
        read = 2 * self.weights + (before + tokens) * self.kv_token
        return max(read / self.card.copy_bytes_s, flops / self.card.flop_s)

    def _attention(self, pairs: float) -> float:
        return 4 * pairs * self.config.q_size * self.config.layers

    def single(self, prompt: int, out: int) -> float:
        steps = sum(self.decode_s([prompt + at]) for at in range(1, out))
        return out / (self.prefill_s(prompt) + steps)

    def batch(self, count: int, prompt: int, out: int) -> float:
        steps = sum(self.decode_s([prompt + at] * count) for at in range(1, out))
        return count * out / (self._all_prefill(count, prompt) + steps)

    def shared(self, count: int, common: int, own: int, out: int, *, warm: bool) -> float:
        steps = sum(self.decode_s([own + at] * count, common) for at in range(1, out))
        first = 0.0 if warm else self.prefill_s(common)
        flops = self.prefill_s(own, common)
        prefill = max(flops, self._all_prefill(count, own, common))
        return count * out / (first + prefill + steps)

    def _all_prefill(self, count: int, tokens: int, before: int = 0) -> float:
        linear = self.weights - self.config.vocab * self.config.hidden
        pairs = count * (tokens * before + tokens * tokens / 2)
        return (2 * linear * tokens * count + self._attention(pairs)) / self.card.flop_s
