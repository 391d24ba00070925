"""The likeliest token of each row, in one launch.

    program (block, row): largest of its block → the last block of a row compares the blocks

Bound: memory, 128 rows of 128,256 in bf16 are 33 MB, 11 µs; one row is a launch. Among equals the
lowest token wins, as argmax does on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class GreedyScratch:
    values: Tensor
    """fp32 [rows, blocks]"""
    tokens: Tensor
    """int32 [rows, blocks]"""
    counters: Tensor
    """int32 [rows], zero between launches"""

    @classmethod
    def make(cls, max_rows: int, vocab: int, device: torch.device | str) -> GreedyScratch:
        shape = (max_rows, triton.cdiv(vocab, BLOCK))
        return cls(
            torch.empty(shape, dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.int32, device=device),
            torch.zeros(max_rows, dtype=torch.int32, device=device),
        )


@triton.jit
def first_of_largest(values, ids):
    """The largest, and the lowest id that has it."""
    largest = tl.max(values, axis=0)
    return largest, tl.min(tl.where(values == largest, ids, 2147483647), axis=0)


@triton.jit
def _greedy(
    logits, tokens, best_values, best_tokens, counters, vocab, stride,
    BLOCKS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    row = tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    there = logits + row.to(tl.int64) * stride + ids
    values = tl.load(there, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    value, token = first_of_largest(values, ids)
    tl.store(best_values + row * BLOCKS + block, value)
    tl.store(best_tokens + row * BLOCKS + block, token)
    tl.debug_barrier()
    if tl.atomic_add(counters + row, 1, sem="acq_rel") == BLOCKS - 1:
        each = tl.arange(0, WIDTH)
        inside = each < BLOCKS
        bests = tl.load(best_values + row * BLOCKS + each, mask=inside, other=float("-inf"))
        whose = tl.load(best_tokens + row * BLOCKS + each, mask=inside, other=2147483647)
        _, first = first_of_largest(bests, whose)
        tl.store(tokens + row, tl.minimum(first, vocab - 1))
        tl.store(counters + row, 0)


def greedy(logits: Tensor, tokens: Tensor, scratch: GreedyScratch) -> None:
    """logits [rows, vocab] → `tokens` int32 [rows]. A row without any number gives some token."""
    rows, vocab = logits.shape
    blocks = triton.cdiv(vocab, BLOCK)
    _greedy[(blocks, rows)](
        logits, tokens, scratch.values, scratch.tokens, scratch.counters, vocab, logits.stride(0),
        BLOCKS=blocks, WIDTH=triton.next_power_of_2(blocks), BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip


def greedy_twin(logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1).to(torch.int32)
