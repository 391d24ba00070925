"""Paged attention equals attention over one piece, by torch and by the compiled loop alike."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.batch import Batch, BatchBuilder
from engine.kernels.attention import TorchAttention
from engine.kernels.team import alone, torch_team
from engine.models.config import DecoderConfig, Rope
from engine.models.weights import HeadNorms
from engine.pool import KVPool, make_pool
from engine.runner import Backend, cpu_attention
from engine.sequence import Chunk
from tests.support.steps import make_sequence

PAGE, PAGES = 4, 200
CONFIG = DecoderConfig("LlamaForCausalLM", 100, 32, 64, 2, 6, 2, 16, 128, 1e-5, Rope(), True)


def torch_backend(config: DecoderConfig, pool: KVPool) -> Backend:
    return TorchAttention(config, pool)


def numba_backend(config: DecoderConfig, pool: KVPool) -> Backend:
    pytest.importorskip("numba", reason="an optional accelerator")
    return cpu_attention(config, pool)


def numba_alone(config: DecoderConfig, pool: KVPool) -> Backend:
    backend = numba_backend(config, pool)
    backend.team = alone  # type: ignore[attr-defined]
    return backend


BACKENDS = [torch_backend, numba_backend, numba_alone]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Callable[[DecoderConfig, KVPool], Backend]:
    return request.param  # type: ignore[no-any-return]


def batch_of(spans: list[tuple[int, int]]) -> Batch:
    """A batch of (computed, length) chunks on scattered pages."""
    pages = iter(np.random.default_rng(3).permutation(PAGES).tolist())
    chunks = []
    for computed, length in spans:
        sequence = make_sequence(range(computed + length))
        sequence.computed = computed
        sequence.pages = [next(pages) for _ in range(-(-(computed + length) // PAGE))]
        chunks.append(Chunk(sequence, length))
    builder = BatchBuilder(page_size=PAGE, max_tokens=64, max_chunks=4, max_pages=32)
    return builder.build(chunks)


def filled_pool(config: DecoderConfig, dtype: torch.dtype) -> KVPool:
    pool = make_pool(config, page_size=PAGE, num_pages=PAGES, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    for layer in pool.layers:
        layer.k.copy_(torch.randn(layer.k.shape, generator=generator))
        layer.v.copy_(torch.randn(layer.v.shape, generator=generator))
    return pool


def by_hand(q: torch.Tensor, pool: KVPool, batch: Batch) -> torch.Tensor:
    """Softmax(q · kᵀ / √d) · v, row by row and head by head, on queries that are rotated already
    and keys that are stored already."""
    layer, group = pool.layers[1], CONFIG.heads // CONFIG.kv_heads
    out = torch.zeros(len(q), CONFIG.heads, CONFIG.head_dim)
    for chunk, first in enumerate(batch.starts[:-1]):
        for row in range(int(first), int(batch.starts[chunk + 1])):
            seen = int(batch.positions[row]) + 1
            table = torch.from_numpy(batch.tables[chunk])
            k = layer.k[table].flatten(0, 1)[:seen].float()
            v = layer.v[table].flatten(0, 1)[:seen].float()
            for head in range(CONFIG.heads):
                weights = (k[:, head // group] @ q[row, head] / CONFIG.head_dim**0.5).softmax(0)
                out[row, head] = weights @ v[:, head // group]
    return out.flatten(1)


SPANS = {
    "one decode row": [(30, 1)],
    "a context of two": [(1, 1)],
    "ragged decode rows": [(30, 1), (3, 1), (64, 1), (7, 1), (127, 1), (16, 1), (100, 1)],
    "a prompt": [(0, 13)],
    "a prompt of one token": [(0, 1)],
    "a later chunk": [(9, 6)],
    "all at once": [(0, 13), (30, 1), (9, 6), (3, 1), (0, 1), (40, 2)],
}


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_what_the_formula_says(
    backend: Callable[[DecoderConfig, KVPool], Backend],
    spans: list[tuple[int, int]],
    dtype: torch.dtype,
) -> None:
    still = replace(CONFIG, rope=Rope(kind="linear", factor=1e12))  # nothing turns
    pool, batch = filled_pool(still, dtype), batch_of(spans)
    rows = len(batch.tokens)
    qkv = torch.randn(rows, still.q_size + 2 * still.kv_size).to(dtype)
    q = qkv[:, : still.q_size].clone().view(rows, still.heads, still.head_dim).float()
    k, v = qkv[:, still.q_size :].clone().split(still.kv_size, dim=1)
    mixed = backend(still, pool).plan(batch).attend(1, qkv, None)
    slots = torch.from_numpy(batch.slots)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    torch.testing.assert_close(pool.layers[1].k_slots[slots], k, **close)
    torch.testing.assert_close(pool.layers[1].v_slots[slots], v)
    torch.testing.assert_close(mixed.float(), by_hand(q, pool, batch), **close)


def test_other_layers_and_slots_are_left_alone(
    backend: Callable[[DecoderConfig, KVPool], Backend],
) -> None:
    pool, batch = filled_pool(CONFIG, torch.float32), batch_of(SPANS["all at once"])
    before = [layer.k.clone() for layer in pool.layers]
    qkv = torch.randn(len(batch.tokens), CONFIG.q_size + 2 * CONFIG.kv_size)
    backend(CONFIG, pool).plan(batch).attend(1, qkv, None)
    changed = (pool.layers[1].k != before[1]).flatten(0, 1).any(-1).any(-1).nonzero().flatten()
    assert sorted(changed.tolist()) == sorted(batch.slots.tolist())
    assert torch.equal(pool.layers[0].k, before[0])


def test_head_norms_apply_before_the_rotation(
    backend: Callable[[DecoderConfig, KVPool], Backend],
) -> None:
    norms = HeadNorms(torch.rand(CONFIG.head_dim) + 0.5, torch.rand(CONFIG.head_dim) + 0.5, 1e-6)
    qkv = torch.randn(3, CONFIG.q_size + 2 * CONFIG.kv_size)
    q, k, v = qkv.clone().split([CONFIG.q_size, CONFIG.kv_size, CONFIG.kv_size], dim=1)
    norm = torch.nn.functional.rms_norm
    shape = (CONFIG.head_dim,)
    normed = torch.cat(
        (
            norm(q.view(3, -1, *shape), shape, norms.q, norms.eps).flatten(1),
            norm(k.view(3, -1, *shape), shape, norms.k, norms.eps).flatten(1),
            v,
        ),
        dim=1,
    )
    spans = [(5, 1), (0, 2)]
    pools = [filled_pool(CONFIG, torch.float32) for _ in range(2)]
    given = backend(CONFIG, pools[0]).plan(batch_of(spans)).attend(0, qkv, norms)
    expected = backend(CONFIG, pools[1]).plan(batch_of(spans)).attend(0, normed, None)
    torch.testing.assert_close(given, expected)


def test_a_team_calls_the_worker_on_each_of_its_threads() -> None:
    calls: list[int] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def worker(address: int) -> None:
        calls.append(address)

    address = ctypes.cast(worker, ctypes.c_void_p).value
    assert address is not None
    team = torch_team()
    team(address, 4096, 2)
    assert calls == [4096] * (1 if team is alone else 2)
    alone(address, 8192, 2)
    assert calls[-1] == 8192
