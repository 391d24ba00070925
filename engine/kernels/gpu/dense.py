"""Attention of one prompt to itself, when nothing of it is cached: by cuDNN, from the qkv rows.

    rows  [ q | k | v ]  one prompt from position 0, then padding: no pages are read

Of a long cold prompt attention is a third of the time, and it needs none of what extend.py is for:
no pages, no chunks, no cached prefix. cuDNN's kernel reaches 605 TFLOP/s here on an H100 (8,192
rows, 32 heads on 8 of keys), extend.py 380. Padding rows come last, so the causal mask keeps them
from all others. A plan is built for each number of rows, which takes 40 ms once: round rows up
to few sizes.

Rejected: PyTorch's FlashAttention, 320 TFLOP/s; a kernel of our own with Hopper's copy engine.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def dense_fits(dtype: torch.dtype, head_dim: int, device: torch.device) -> bool:
    """Whether cuDNN has the kernel that was measured: Hopper or later, a half type."""
    return (
        dtype in (torch.bfloat16, torch.float16)
        and head_dim in (64, 128)
        and device.type == "cuda"
        and torch.backends.cudnn.is_available()
        and torch.cuda.get_device_capability(device) >= (9, 0)
    )


def dense_attention(qkv: Tensor, heads: int, kv_heads: int, scale: float) -> Tensor:
    """Causal. qkv [rows, (heads + 2 · kv_heads) · head_dim], rotated → [rows, heads · head_dim]."""
    rows = qkv.view(1, len(qkv), heads + 2 * kv_heads, -1).transpose(1, 2)
    q, k, v = rows.split((heads, kv_heads, kv_heads), dim=1)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return mixed.transpose(1, 2).reshape(len(qkv), -1)
