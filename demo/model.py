"""The two models: a plain Llama, named so that its weights load in transformers as they are.

Problem: packed rows hold many documents, and none may look into a neighbour's notes. Choice:
FlexAttention with a block mask on the GPU (it skips whole 128 x 128 blocks, so short documents cost
next to nothing), scaled-dot-product attention with a dense mask on the CPU. Rejected: transformers'
own Llama with a causal mask only; a pilot with it ran at 0.90 instead of 1.12 million tokens a
second on the same GPU, and learnt look-ups late. Weights stay float32 and are cast for each
product; the residual stream is bfloat16.
Sources: Llama 2 (architecture), FlexAttention (PyTorch), modded-nanogpt (the block mask).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from demo.data import ROW, VOCABULARY

BLOCK = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one model; `heads` of 64 dimensions share `kv_heads` keys and values."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int = VOCABULARY
    context: int = ROW
    theta: float = 10_000.0
    eps: float = 1e-6

    @property
    def head(self) -> int:
        return self.width // self.heads


SHAPES = {
    "small": Shape(width=256, layers=6, heads=4, kv_heads=2, inner=704),
    "large": Shape(width=512, layers=12, heads=8, kv_heads=4, inner=1408),
    "smoke": Shape(64, 2, 2, 1, 160, vocabulary=1024, context=128),
}

Mask = BlockMask | Tensor


def document_mask(docs: Tensor) -> Mask:
    """Causal attention within a document. docs: [rows, width], rising document numbers."""
    if not docs.is_cuda:
        same = docs[:, :, None] == docs[:, None, :]
        return (same & torch.ones_like(same[0]).tril())[:, None]

    def visible(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (docs[b, q] == docs[b, k])

    blocks = docs.view(docs.shape[0], -1, BLOCK)
    low, high = blocks.amin(-1), blocks.amax(-1)
    at = torch.arange(low.shape[1], device=docs.device)
    before = at[:, None] >= at[None, :]
    touching = before & (low[:, :, None] <= high[:, None, :])
    one = low[:, :, None] == high[:, None, :]  # both blocks lie in one and the same document
    whole = (at[:, None] > at[None, :]) & one & (low == high)[:, :, None] & (low == high)[:, None]
    return BlockMask.from_kv_blocks(
        *listed(touching & ~whole), *listed(whole), BLOCK_SIZE=BLOCK, mask_mod=visible
    )


def listed(dense: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, n, n] bool -> how many key blocks each query block has, and which, set ones first."""
    counts = dense.sum(-1, dtype=torch.int32)
    order = dense.int().argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[:, None].contiguous(), order[:, None].contiguous()


class Norm(nn.Module):
    """Root-mean-square norm, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight.to(x.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position, in halves as transformers does it. x: [rows, heads, width, head]."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.q_proj = nn.Linear(s.width, s.heads * s.head, bias=False)
        self.k_proj = nn.Linear(s.width, s.kv_heads * s.head, bias=False)
        self.v_proj = nn.Linear(s.width, s.kv_heads * s.head, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head, s.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        s, (rows, width, _) = self.shape, x.shape
        weights = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        qkv = (
            functional.linear(x, weights.to(x.dtype)).view(rows, width, -1, s.head).transpose(1, 2)
        )
        q, k, v = qkv.split((s.heads, s.kv_heads, s.kv_heads), 1)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        if isinstance(mask, BlockMask):
            # a copy: compiled FlexAttention was seen to read a view of qkv from its wrong end
            y = flex_attention(q, k, v.contiguous(), block_mask=mask, enable_gqa=True)
        else:
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        y = y.transpose(1, 2).reshape(rows, width, -1)
        return functional.linear(y, self.o_proj.weight.to(x.dtype))


class FeedForward(nn.Module):
    """SwiGLU; both input products in one."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.width, s.inner, bias=False)
        self.up_proj = nn.Linear(s.width, s.inner, bias=False)
        self.down_proj = nn.Linear(s.inner, s.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.cat((self.gate_proj.weight, self.up_proj.weight)).to(x.dtype)
        gate, up = functional.linear(x, weights).chunk(2, -1)
        return functional.linear(functional.silu(gate) * up, self.down_proj.weight.to(x.dtype))


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normed copy of the stream."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(s.width, s.eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = Norm(s.width, s.eps)
        self.mlp = FeedForward(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, layers, last norm; transformers calls it `model`."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocabulary, s.width)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = Norm(s.width, s.eps)


class Llama(nn.Module):
    """Token ids to logits; input and output share one embedding."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.model = Body(shape)
        half = torch.arange(0, shape.head, 2).float() / shape.head
        angle = torch.outer(torch.arange(shape.context).float(), shape.theta**-half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Small normal weights; what writes to the stream starts at zero, so layers fade in."""
        for name, p in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(p)
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids: Tensor, mask: Mask) -> Tensor:
        """ids: [rows, width]. Returns logits [rows, width, vocabulary] in `dtype`."""
        table = self.model.embed_tokens.weight
        x = functional.embedding(ids, table).to(self.dtype)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return functional.linear(self.model.norm(x), table.to(self.dtype))
