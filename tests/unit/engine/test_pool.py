"""Pages are sized by bytes, and a budget that holds no whole context is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.models.config import DecoderConfig, Rope
from engine.pool import PoolTooSmall, make_pool, num_pages_for, page_bytes

CONFIG = DecoderConfig("LlamaForCausalLM", 100, 32, 64, 3, 4, 2, 8, 64, 1e-5, Rope(), True)


def test_a_page_holds_keys_and_values_of_all_layers() -> None:
    assert page_bytes(CONFIG, 16, torch.bfloat16) == 2 * 3 * 16 * 2 * 8 * 2


def test_a_pool_takes_the_bytes_it_was_sized_for() -> None:
    kv_bytes = 10 * page_bytes(CONFIG, 16, torch.float32)
    pages = num_pages_for(CONFIG, 16, torch.float32, kv_bytes + 5)
    pool = make_pool(CONFIG, page_size=16, num_pages=pages, dtype=torch.float32)
    assert pages == 10
    assert pool.kv_bytes == kv_bytes


def test_slots_are_the_same_memory_as_pages() -> None:
    pool = make_pool(CONFIG, page_size=4, num_pages=5, dtype=torch.float32)
    layer = pool.layers[1]
    layer.k_slots[2 * 4 + 3] = 7.0
    assert layer.k[2, 3].eq(7.0).all()
    assert pool.layers[0].k.eq(0.0).all()


def test_a_budget_below_one_context_is_refused_with_what_it_needs() -> None:
    one = page_bytes(CONFIG, 16, torch.float32)
    with pytest.raises(PoolTooSmall, match=rf"48 tokens.*64.*at least {4 * one:,} bytes"):
        num_pages_for(CONFIG, 16, torch.float32, 4 * one - 1)
    assert num_pages_for(replace(CONFIG, context=48), 16, torch.float32, 4 * one - 1) == 3
