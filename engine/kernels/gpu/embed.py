"""Token ids → rows of the embedding, where an id may be one that only the device knows.

A step that is launched before the last one was read computes on tokens that the host has not seen:
source −1 − i means "the i-th token of `drawn`". Bound: memory, a row read and written; one program
a block of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def _embed(source, drawn, weight, out, hidden, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(source + row)
    if token < 0:
        token = tl.load(drawn - 1 - token)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < hidden
    values = tl.load(weight + token.to(tl.int64) * hidden + columns, mask=mask)
    tl.store(out + row * hidden + columns, values, mask=mask)


def embed(source: Tensor, drawn: Tensor, weight: Tensor, out: Tensor) -> None:
    """source int32 [rows], drawn int32 [any], weight [vocab, hidden] → out [rows, hidden]."""
    rows, hidden = out.shape
    _embed[(rows, triton.cdiv(hidden, BLOCK))](
        source, drawn, weight, out, hidden, BLOCK=BLOCK, num_warps=4
    )


def embed_twin(source: Tensor, drawn: Tensor, weight: Tensor) -> Tensor:
    """[rows, hidden]"""
    known = torch.where(source >= 0, source, drawn[(-1 - source).clamp(min=0).long()])
    return weight[known.long()]
