"""A decoder on the GPU → its runner. Imports Triton, so it is imported where a GPU is used only."""

from __future__ import annotations

import torch

from engine.cuda.layout import CHUNKS, DECODE
from engine.cuda.model import TritonModel
from engine.cuda.prefixes import MAX_GROUPS, Prefixes
from engine.cuda.runner import GpuRunner
from engine.cuda.sampling import TritonDraw
from engine.kernels.gpu.dense import dense_fits
from engine.kernels.gpu.prefix import PrefixPlan
from engine.models.decoder import Decoder
from engine.pool import KVPool

LONGEST_PREFIX = 32_768
"""Tokens of a prefix that rows read together; what is shared beyond, each reads for itself."""


def gpu_runner(
    decoder: Decoder,
    pool: KVPool,
    *,
    max_tokens: int,
    max_running: int,
    graphs: bool = True,
    share_prefixes: bool = True,
) -> GpuRunner:
    """`max_tokens`, `max_running`: of one step at most."""
    config = decoder.config
    device = decoder.weights.embed.device
    most = max(DECODE[-1], max_running + 64)
    max_pages = -(-config.context // pool.page_size)
    plan = PrefixPlan.make(
        most,
        MAX_GROUPS,
        min(max_pages, LONGEST_PREFIX // pool.page_size),
        page_size=pool.page_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        device=device,
    )
    return GpuRunner(
        TritonModel(
            decoder,
            pool,
            plan,
            max_rows=most,
            max_samples=most + CHUNKS[1],
            sms=_multiprocessors(device),
        ),
        TritonDraw(2 * most, config.vocab, device),
        device=device,
        page_size=pool.page_size,
        max_tokens=max_tokens,
        max_running=max_running,
        max_pages=max_pages,
        prefixes=Prefixes(plan) if share_prefixes else None,
        graphs=graphs,
        dense=dense_fits(decoder.weights.embed.dtype, config.head_dim, device),
    )


def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # Triton's interpreter
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
