"""Drives a Runner without the scheduler: the engine's loop at its barest, for tests of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from engine.kernels.attention import TorchAttention
from engine.loading import load_decoder, read_checkpoint
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.pool import KVPool, make_pool
from engine.runner import Backend, CpuRunner
from engine.sequence import Chunk, Runner, Sampled, SamplingParams, Sequence


def make_runner(
    decoder: Decoder,
    *,
    page_size: int = 4,
    num_pages: int = 256,
    dtype: torch.dtype = torch.float32,
    backend: Callable[[DecoderConfig, KVPool], Backend] = TorchAttention,
) -> CpuRunner:
    pool = make_pool(decoder.config, page_size=page_size, num_pages=num_pages, dtype=dtype)
    return CpuRunner(decoder, pool, backend(decoder.config, pool))


def load_runner(path: Path, **options: object) -> CpuRunner:
    decoder = load_decoder(read_checkpoint(path), torch.float32)
    return make_runner(decoder, **options)  # type: ignore[arg-type]


def make_sequence(
    prompt: Iterable[int], params: SamplingParams | None = None, *, number: int = 0
) -> Sequence:
    tokens = np.fromiter(prompt, dtype=np.int32)
    return Sequence(
        id=number,
        namespace="test",
        tenant="test",
        share=1.0,
        tokens=tokens,
        num_prompt=len(tokens),
        max_known=10**9,
        params=params or SamplingParams(),
        arrival=0.0,
        known=len(tokens),
    )


class Steps:
    """Gives out pages in a scattered order and applies what a step drew, as the loop does."""

    def __init__(self, runner: Runner, *, page_size: int = 4, num_pages: int = 256) -> None:
        self.runner = runner
        self.page_size = page_size
        scattered = np.random.default_rng(7).permutation(np.arange(1, num_pages))
        self.free = [int(page) for page in scattered]

    def step(self, lengths: dict[Sequence, int]) -> list[Sampled]:
        """Compute so many tokens of each sequence; append what was drawn."""
        for sequence, length in lengths.items():
            pages = -(-(sequence.computed + length) // self.page_size)
            while len(sequence.pages) < pages:
                sequence.pages.append(self.free.pop())
        chunks = [Chunk(sequence, length) for sequence, length in lengths.items()]
        sampled = self.runner.launch(chunks).result()
        for sequence, length in lengths.items():
            sequence.computed += length
        for one in sampled:
            one.sequence.append(one.token)
        return sampled

    def preempt(self, sequence: Sequence) -> None:
        self.free[:0] = sequence.pages
        sequence.pages = []
        sequence.moved += 1
        sequence.computed = 0

    def generate(self, sequences: list[Sequence], tokens: int, *, chunk: int = 10**9) -> None:
        """Until each has `tokens` generated ones, computing at most `chunk` of each in a step."""
        while pending := [s for s in sequences if len(generated(s)) < tokens]:
            self.step({s: min(chunk, s.to_compute) for s in pending})


def generated(sequence: Sequence) -> list[int]:
    return [int(token) for token in sequence.tokens[sequence.num_prompt : sequence.known]]
