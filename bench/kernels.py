"""The GPU's kernels one by one: time, bound, and share of the bound, on the shapes of real models.

    python -m bench.kernels [--shape 8b] [--shape 0.6b] [--only layer,decode]
    python -m bench.kernels --sweep skinny,extend

Each kernel is captured some times in a graph, over copies of its inputs that together do not fit in
the cache, so neither the host nor the cache is measured. "layer, 1 row" is the chain of a decode
step's kernels, whose ends overlap. Bounds: bytes that must move over what a copy of 4 GiB reaches
on this card, or operations over what a product of 8,192³ reaches; the larger counts. `--sweep`
prints the times of other tiles instead.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.engine_gpu_bound import Card, measure_card
from bench.engine_gpu_shapes import SHAPES
from engine.kernels.gpu import extend, gemv
from engine.kernels.gpu.activation import silu_mul
from engine.kernels.gpu.attend import Scratch
from engine.kernels.gpu.decode import decode_attention, decode_splits
from engine.kernels.gpu.dense import dense_attention
from engine.kernels.gpu.extend import extend_attention, extend_splits
from engine.kernels.gpu.gemv import skinny
from engine.kernels.gpu.greedy import GreedyScratch, greedy
from engine.kernels.gpu.norm import add_rms_norm
from engine.kernels.gpu.prefix import PREFIX_SPLITS, Group, PrefixPlan, prefix_attention
from engine.kernels.gpu.rope import rope_store, rope_table
from engine.kernels.gpu.sample import SampleInputs, SampleScratch, sample
from engine.loading import read_config
from engine.models.config import DecoderConfig
from engine.pool import LayerKV, make_pool

PAGE = 16
UNCACHED = 256 << 20
DTYPE = torch.bfloat16
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    kernel: str
    what: str
    calls: Sequence[Call]
    moved: float
    """Bytes that one call must move."""
    flop: float = 0.0


def seconds(calls: Sequence[Call], repeats: int = 7) -> float:
    """Of one call, in a graph of all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(repeats + 2):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / len(calls))
    return statistics.median(times[2:])


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, device="cuda")


def copies(size: int) -> int:
    """How many inputs of `size` bytes do not fit in the cache."""
    return max(2, min(64, math.ceil(UNCACHED / size)))


def ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


# --------------------------------------------------------------------------- products of one row


@dataclass(frozen=True)
class Product:
    name: str
    n: int
    k: int
    norm: bool
    silu: bool
    residual: bool

    @property
    def bytes(self) -> int:
        return 2 * self.n * self.k

    def calls(self, tile: gemv.Tile | None = None) -> list[Call]:
        x, norm = randn(1, self.k), randn(self.k)
        out = randn(1, self.n // 2 if self.silu else self.n)
        weights = [randn(self.n, self.k) for _ in range(copies(self.bytes))]
        return [
            lambda weight=weight: skinny(  # type: ignore[misc]
                x, weight, out, norm=norm if self.norm else None, eps=1e-5, tile=tile,
                residual=out if self.residual else None, silu_mul=self.silu,
            )
            for weight in weights
        ]  # fmt: skip

    def library(self) -> list[Call]:
        """cuBLAS, without norm, activation and residual."""
        x, out = randn(1, self.k), randn(1, self.n)
        weights = [randn(self.n, self.k) for _ in range(copies(self.bytes))]
        return [lambda w=w: torch.mm(x, w.T, out=out) for w in weights]  # type: ignore[misc]


def products(config: DecoderConfig) -> list[Product]:
    hidden, q, ffn = config.hidden, config.q_size, config.ffn
    return [
        Product("qkv", q + 2 * config.kv_size, hidden, norm=True, silu=False, residual=False),
        Product("out", hidden, q, norm=False, silu=False, residual=True),
        Product("gate·up", 2 * ffn, hidden, norm=True, silu=True, residual=False),
        Product("down", hidden, ffn, norm=False, silu=False, residual=True),
        Product("head", config.vocab, hidden, norm=True, silu=False, residual=False),
    ]


def product_cases(config: DecoderConfig) -> Iterator[Case]:
    for one in products(config):
        yield Case("skinny", f"1 row, {one.name}", one.calls(), one.bytes)
        yield Case("(cuBLAS)", f"1 row, {one.name}", one.library(), one.bytes)


# --------------------------------------------------------------------------- attention


class Context:
    """Rows of paged context in one layer's pages, scattered."""

    def __init__(self, config: DecoderConfig, lengths: Sequence[int], shared: int = 0) -> None:
        own = [-(-(length - shared) // PAGE) for length in lengths]
        pages = shared // PAGE + sum(own)
        pool = make_pool(config, page_size=PAGE, num_pages=pages, dtype=DTYPE, device="cuda")
        order = torch.randperm(pages, dtype=torch.int32, device="cuda")
        self.prefix = order[: shared // PAGE]
        self.tables = torch.zeros(
            len(lengths), shared // PAGE + max(own), dtype=torch.int32, device="cuda"
        )
        at = len(self.prefix)
        for row, count in enumerate(own):
            whole = torch.cat((self.prefix, order[at : at + count]))
            self.tables[row, : len(whole)] = whole
            at += count
        layers = copies(pages * PAGE * 4 * config.kv_size)
        self.layers: list[LayerKV] = pool.layers[:layers]
        for layer in self.layers:
            layer.k.normal_()
            layer.v.normal_()
        self.lengths = ints(lengths)
        self.bytes = 4 * config.kv_size * (shared + sum(lengths) - shared * len(lengths))


def sms() -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count


def decode_cases(config: DecoderConfig) -> Iterator[Case]:
    for rows, length in ((1, 256), (1, 8192), (8, 1024), (128, 576), (128, 2112)):
        context = Context(config, [length] * rows)
        q, out = randn(rows, config.q_size), randn(rows, config.q_size)
        scratch = Scratch.make(rows, config.heads, config.kv_heads, config.head_dim, "cuda")
        calls: list[Call] = [
            lambda kv=kv, c=context, q=q, out=out, s=scratch, n=rows: decode_attention(  # type: ignore[misc]
                q, kv, c.tables, c.lengths, out, s,
                splits=decode_splits(n, config.kv_heads, sms()), scale=0.1,
            )
            for kv in context.layers
        ]  # fmt: skip
        yield Case("decode", f"{rows} × {length}", calls, context.bytes)


def shared_cases(config: DecoderConfig) -> Iterator[Case]:
    rows, shared, own = 128, 2048, 96
    context = Context(config, [shared + own] * rows, shared)
    plan = PrefixPlan.make(
        rows, 4, shared // PAGE, page_size=PAGE, heads=config.heads, kv_heads=config.kv_heads,
        device="cuda",
    )  # fmt: skip
    plan.fill([Group(tuple(range(rows)), context.prefix.cpu().numpy())])
    plan.upload()
    scratch = Scratch.make(rows, config.heads, config.kv_heads, config.head_dim, "cuda")
    q, out = randn(rows, config.q_size), randn(rows, config.q_size)
    splits = decode_splits(rows, config.kv_heads, sms())

    def prefix(kv: LayerKV) -> None:
        prefix_attention(q, kv, plan, scratch, scale=0.1)

    def both(kv: LayerKV) -> None:
        prefix(kv)
        decode_attention(
            q, kv, context.tables, context.lengths, out, scratch, splits=splits, scale=0.1,
            starts=plan.starts, prefix_splits=PREFIX_SPLITS,
        )  # fmt: skip

    flop = 4.0 * rows * shared * config.q_size
    one = 4 * config.kv_size * shared
    layers = context.layers
    yield Case(
        "prefix", f"{rows} × {shared}", [lambda kv=kv: prefix(kv) for kv in layers], one, flop
    )  # type: ignore[misc]
    yield Case(
        "prefix+decode",
        f"{rows} × ({shared} + {own})",
        [lambda kv=kv: both(kv) for kv in layers],  # type: ignore[misc]
        context.bytes,
        flop,
    )


def extend_calls(
    config: DecoderConfig, chunks: int, new: int, old: int, tile: extend.Tile | None = None
) -> tuple[list[Call], int]:
    context = Context(config, [new + old] * chunks)
    rows = chunks * new
    q, out = randn(rows, config.q_size), randn(rows, config.q_size)
    starts = ints([new * at for at in range(chunks + 1)])
    scratch = Scratch.make(256, config.heads, config.kv_heads, config.head_dim, "cuda")
    splits = extend_splits(rows, config.heads, config.kv_heads, sms())
    calls: list[Call] = [
        lambda kv=kv: extend_attention(  # type: ignore[misc]
            q, kv, context.tables, starts, context.lengths, out, scale=0.1, splits=splits,
            scratch=scratch, tile=tile,
        )
        for kv in context.layers
    ]  # fmt: skip
    return calls, context.bytes


EXTENDS = ((1, 1024, 0), (1, 8192, 0), (16, 512, 0), (1, 16, 8176), (1, 1024, 7168))


def dense_cases(config: DecoderConfig) -> Iterator[Case]:
    """By cuDNN, in the place of extend's cold prompts."""
    for rows in (1024, 8192):
        qkv = randn(rows, config.q_size + 2 * config.kv_size)
        calls: list[Call] = [
            lambda x=qkv: dense_attention(x, config.heads, config.kv_heads, 0.1)  # type: ignore[misc]
        ]
        moved = 2.0 * rows * (2 * config.q_size + 2 * config.kv_size)
        yield Case("dense", f"1 × {rows}", 4 * calls, moved, extend_flop(config, 1, rows, 0))


def extend_cases(config: DecoderConfig) -> Iterator[Case]:
    for chunks, new, old in EXTENDS:
        calls, moved = extend_calls(config, chunks, new, old)
        what = f"{chunks} × {new}" + (f" behind {old}" if old else "")
        yield Case("extend", what, calls, moved, extend_flop(config, chunks, new, old))


def extend_flop(config: DecoderConfig, chunks: int, new: int, old: int) -> float:
    return 4.0 * chunks * config.q_size * (new * old + new * (new + 1) / 2)


# --------------------------------------------------------------------------- row by row


def row_cases(config: DecoderConfig) -> Iterator[Case]:
    hidden, ffn, width = config.hidden, config.ffn, config.q_size + 2 * config.kv_size
    table = rope_table(config.rope, config.head_dim, 4096, "cuda")
    for rows in (1, 128, 8192):
        some = range(copies(rows * hidden * 6))
        deltas, outs = [randn(rows, hidden) for _ in some], [randn(rows, hidden) for _ in some]
        residuals, weight = [randn(rows, hidden) for _ in some], randn(hidden)
        calls: list[Call] = [
            lambda d=d, r=r, o=o, w=weight: add_rms_norm(d, r, w, 1e-5, o)  # type: ignore[misc]
            for d, r, o in zip(deltas, residuals, outs, strict=True)
        ]
        yield Case("add_rms_norm", f"{rows} rows", calls, 8 * rows * hidden)
        gates = [randn(rows, 2 * ffn) for _ in range(copies(rows * ffn * 4))]
        out = randn(rows, ffn)
        calls = [lambda g=g, o=out: silu_mul(g, o) for g in gates]  # type: ignore[misc]
        yield Case("silu_mul", f"{rows} rows", calls, 6 * rows * ffn)
        context = Context(config, [rows])
        qkvs = [randn(rows, width) for _ in range(copies(rows * width * 2))]
        at = torch.arange(rows, dtype=torch.int32, device="cuda")
        calls = [
            lambda x=x, at=at, c=context: rope_store(  # type: ignore[misc]
                x, at % 4096, at, table, c.layers[0], config.heads, None
            )
            for x in qkvs
        ]
        moved = 2 * rows * (2 * width + config.kv_size)
        yield Case("rope_store", f"{rows} rows", calls, moved)


def draw_cases(config: DecoderConfig) -> Iterator[Case]:
    vocab = config.vocab
    for rows in (1, 128):
        some = [randn(rows, vocab) for _ in range(copies(rows * vocab * 2))]
        tokens = ints([0] * rows)
        scratch = GreedyScratch.make(rows, vocab, "cuda")
        calls: list[Call] = [lambda x=x, t=tokens, s=scratch: greedy(x, t, s) for x in some]  # type: ignore[misc]
        yield Case("greedy", f"{rows} rows", calls, 2 * rows * vocab)
        floats = [torch.full((rows,), value, device="cuda") for value in (0.8, 0.9, 0.0, 1.0)]
        warm, top_p, nothing, one = floats
        at = torch.arange(rows, dtype=torch.int32, device="cuda")
        none = torch.full_like(at, -1)
        inputs = SampleInputs(
            warm, at * 0, top_p, nothing, one, nothing, nothing, at.long(), at, none, none
        )
        room, logprobs = SampleScratch.make(rows, vocab, "cuda"), torch.empty(rows, device="cuda")
        empty = torch.zeros(1, vocab, device="cuda")
        calls = [
            lambda x=x, i=inputs, e=empty, t=tokens, p=logprobs, r=room: sample(  # type: ignore[misc]
                x, i, e.int(), e, t, p, r
            )
            for x in some
        ]
        yield Case("sample", f"{rows} rows, top-p 0.9", calls, 2 * rows * vocab)


def layer_cases(config: DecoderConfig) -> Iterator[Case]:
    """What one row goes through in a layer, as engine/cuda/model.py launches it."""
    context = Context(config, [384])
    table = rope_table(config.rope, config.head_dim, 4096, "cuda")
    at, out = ints([383]), randn(1, config.q_size)
    slot = context.tables[0, 383 // PAGE :][:1] * PAGE + 383 % PAGE
    scratch = Scratch.make(1, config.heads, config.kv_heads, config.head_dim, "cuda")
    x, norm = randn(1, config.hidden), randn(config.hidden)
    qkv, gated = randn(1, config.q_size + 2 * config.kv_size), randn(1, config.ffn)
    shapes = products(config)[:4]
    moved = sum(one.bytes for one in shapes)
    splits = decode_splits(1, config.kv_heads, sms())

    def layer(weights: list[Tensor], kv: LayerKV) -> None:
        skinny(x, weights[0], qkv, norm=norm, eps=1e-5)
        rope_store(qkv, at, slot, table, kv, config.heads, None)
        decode_attention(
            qkv[:, : config.q_size], kv, context.tables, context.lengths, out, scratch,
            splits=splits, scale=0.1,
        )  # fmt: skip
        skinny(out, weights[1], x, residual=x)
        skinny(x, weights[2], gated, norm=norm, eps=1e-5, silu_mul=True)
        skinny(gated, weights[3], x, residual=x)

    sets = [[randn(p.n, p.k) * p.k**-0.5 for p in shapes] for _ in range(copies(moved) + 6)]
    kvs = itertools.cycle(context.layers)
    calls = [lambda w=w, kv=kv: layer(w, kv) for w, kv in zip(sets, kvs, strict=False)]  # type: ignore[misc]
    yield Case("layer, 1 row", "384 tokens of context", calls, moved + context.bytes)


# --------------------------------------------------------------------------- tables


CASES = {
    "layer": layer_cases,
    "products": product_cases,
    "decode": decode_cases,
    "shared": shared_cases,
    "extend": extend_cases,
    "dense": dense_cases,
    "rows": row_cases,
    "draw": draw_cases,
}


def report(name: str, card: Card, only: str) -> None:
    config = read_config(SHAPES[name])
    print(f"\n{name:>14} {'':<26} {'µs':>9} {'bound':>9} {'share':>6} {'GB/s':>7} {'TFLOP/s':>8}")
    for kind in only.split(",") if only else CASES:
        for case in CASES[kind](config):
            taken = seconds(case.calls)
            bound = max(case.moved / card.copy_bytes_s, case.flop / card.flop_s)
            print(
                f"{case.kernel:>14} {case.what:<26} {taken * 1e6:9.1f} {bound * 1e6:9.1f} "
                f"{bound / taken:6.0%} {case.moved / taken / 1e9:7.0f} "
                f"{case.flop / taken / 1e12:8.1f}",
                flush=True,
            )
        torch.cuda.empty_cache()


SKINNY = [gemv.Tile(n, k, w) for n in (1, 2, 4, 8) for k in (1024, 2048) for w in (4, 8)]
EXTEND = [
    extend.Tile(64, 64, 4, 2), extend.Tile(64, 64, 4, 3), extend.Tile(64, 128, 4, 2),
    extend.Tile(128, 64, 8, 2), extend.Tile(128, 64, 8, 3), extend.Tile(128, 128, 8, 2),
    extend.Tile(256, 64, 8, 2), extend.Tile(256, 64, 16, 2),
]  # fmt: skip


def sweep(name: str, kernel: str) -> None:
    """Times of each tile, best first."""
    config = read_config(SHAPES[name])
    if kernel == "extend":
        for chunks, new, old in EXTENDS[1:2]:
            times = {
                tile: seconds(extend_calls(config, chunks, new, old, tile)[0], 3) for tile in EXTEND
            }
            _ranked(f"{name} extend {chunks} × {new} behind {old}", times)
        return
    for one in products(config):
        times = {tile: seconds(one.calls(tile), 3) for tile in SKINNY}
        _ranked(f"{name} skinny {one.name} ({one.bytes / 1e6:.0f} MB)", times)


def _ranked(what: str, times: dict[object, float]) -> None:
    ranked = sorted(times, key=lambda tile: times[tile])
    print(what, *(f"{times[tile] * 1e6:8.1f} µs  {tile}" for tile in ranked[:4]), sep="\n  ")
    print(f"  {times[ranked[-1]] * 1e6:8.1f} µs  the worst: {ranked[-1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", action="append", choices=["8b", "0.6b"])
    parser.add_argument("--only", default="", help=", ".join(CASES))
    parser.add_argument("--sweep", default="")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench.kernels measures a GPU, and PyTorch sees none here")
    card = measure_card(torch.device("cuda"))
    print(
        f"{card.name}: copy {card.copy_bytes_s / 1e12:.2f} TB/s, {card.flop_s / 1e12:.0f} TFLOP/s"
    )
    for name in arguments.shape or ["8b", "0.6b"]:
        for kernel in filter(None, arguments.sweep.split(",")):
            sweep(name, kernel)
        if not arguments.sweep:
            report(name, card, arguments.only)


if __name__ == "__main__":
    main()
