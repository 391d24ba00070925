"""Runs one model's steps on the CPU: batch → forward → draw.

The GPU's runner has this same face and another inside (cuda/runner.py): there `launch` enqueues and
returns, here the work is done when it returns, because a CPU has nobody else to do it.

Sequences are read, never changed: the loop marks chunks as computed and appends tokens when it has
read the result, so that a step that fails can be run again.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Protocol

import torch

from engine.batch import Batch, BatchBuilder
from engine.kernels.attention import TorchAttention
from engine.kernels.linear import can_pack
from engine.models.config import DecoderConfig
from engine.models.decoder import Attention, Decoder
from engine.pool import KVPool
from engine.sampler import Sampler
from engine.sequence import Chunk, Sampled
from engine.shortage import telling_shortage


class Backend(Protocol):
    """Makes a step's attention from its batch (kernels/attention.py, kernels/decode_numba.py)."""

    def plan(self, batch: Batch) -> Attention: ...


class Done:
    """A Pending whose work is already done."""

    def __init__(self, sampled: list[Sampled]) -> None:
        self._sampled = sampled

    def ready(self) -> bool:
        return True

    def result(self) -> list[Sampled]:
        return self._sampled


class CpuRunner:
    """Owns one model's weights, pages and step buffers. Called by the engine thread only."""

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        backend: Backend,
        *,
        max_tokens: int = 2048,
        max_chunks: int = 64,
    ) -> None:
        """`max_tokens`, `max_chunks`: the usual most of one step; buffers grow beyond them."""
        self.decoder = decoder
        self.pool = pool
        self._backend = backend
        self._sampler = Sampler()
        self._builder = BatchBuilder(
            page_size=pool.page_size,
            max_tokens=max_tokens,
            max_chunks=max_chunks,
            max_pages=-(-decoder.config.context // pool.page_size),
        )

    @property
    def depth(self) -> int:
        """Nothing runs beside the engine thread, so nothing is gained by launching ahead."""
        return 1

    def prepare(self) -> bool:
        """Everything was laid out at load."""
        return False

    def recover(self) -> None:
        """A step keeps nothing."""

    def launch(self, chunks: list[Chunk]) -> Done:
        """Compute a step. Raises OutOfMemory, or what its parts raise."""
        with telling_shortage():
            return self._compute(chunks)

    @torch.inference_mode()
    def _compute(self, chunks: list[Chunk]) -> Done:
        batch = self._builder.build(chunks)
        logits = self.decoder.forward(
            torch.from_numpy(batch.tokens),
            self._backend.plan(batch),
            torch.from_numpy(batch.sample_rows),
        )
        drawn = self._sampler.draw(logits, [chunk.sequence for chunk in batch.sampled])
        return Done(_in_order_of(chunks, drawn))


def _in_order_of(chunks: list[Chunk], drawn: list[Sampled]) -> list[Sampled]:
    """The batch put decode rows first; the loop wants its own order back."""
    by_sequence = {id(sampled.sequence): sampled for sampled in drawn}
    return [by_sequence[id(chunk.sequence)] for chunk in chunks if chunk.samples]


def cpu_attention(config: DecoderConfig, pool: KVPool) -> Backend:
    """The fastest that is installed: decode compiled by numba, else torch alone."""
    if find_spec("numba") is None:
        return TorchAttention(config, pool)
    compiled = importlib.import_module("engine.kernels.decode_numba")
    backend: Backend = compiled.NumbaAttention(config, pool)
    return backend


def use_threads(count: int) -> None:
    """How many threads one step computes with, for the whole process. More than there are cores
    free makes every product wait for the slowest: a gateway beside it wants one of its own."""
    torch.set_num_threads(count)


def dtype_for(stored: torch.dtype) -> torch.dtype:
    """What this CPU computes a checkpoint in that is stored as `stored`.

    fp32 stays what it is. The half types are computed in bf16 where the CPU has instructions for
    it and torch has oneDNN to use them, else in fp32: emulated, they are slower than that. On a
    Zen 5, a product of 32 rows takes 1.8 times as long in fp32, and keys and values twice the room.
    """
    able = torch.cpu.get_capabilities()
    native = can_pack(torch.bfloat16) and any(
        able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")
    )
    return torch.bfloat16 if native and stored != torch.float32 else torch.float32
