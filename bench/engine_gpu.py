"""The engine alone on one GPU: tokens per second and time to first token, beside the card's bound.

    python -m bench.engine --shape 8b [--shape 0.6b] [--rows start,single,batch,shared,ttft]

Dummy weights, random token ids from one seed, greedy, prefix cache on. "Alone" is scheduler, tree,
runner and text under the loop's own thread, without HTTP and without an event loop: what the loop
delivers is counted where it is delivered. Needs torch, triton, numpy, safetensors, tokenizers and
jinja2.

    single   one request, 128 in, 256 out                                        tokens/s
    batch    128 requests at once, 512 in, 128 out, new prompts in each repeat   tokens/s
    shared   128 requests, 2,048 tokens in common + 64 own in, 64 out            tokens/s
             cold: a new common part in each repeat; warm: the last one again, own parts new
    ttft     one request: 1,024 in; 8,192 in; the same 8,192 again               ms
    trace    (--trace FILE) Mooncake's conversations at an eighth of their length  tokens/s
    start    start of a new process → its first answer, all that CUDA needs included  s

The bound of each row is the larger of memory and arithmetic, from what this card reached in this
run on a copy of 4 GiB and a product of 8,192³, with: every weight but the embedding read once a
step; each key and value read once (a shared prefix once for all); 2 FLOP a weight and token, and
4 · context · q_size a layer and token for attention. It knows no launch and no host.

Behind the rows, engine_gpu_where.py tells where the time of a short pass of each goes
(--no-profile: not).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from bench.engine_gpu_alone import Alone, make_gpu_lane
from bench.engine_gpu_bound import Bound, Card, measure_card
from bench.engine_gpu_rows import Row, first_answer, show, start_anew
from bench.engine_gpu_shapes import GOALS, PAGE, SEED, SHAPES, VLLM
from bench.engine_gpu_trace import read_trace
from bench.engine_gpu_where import Where, profiled
from engine.lane import Lane
from engine.loading import read_config

RESULTS = Path(__file__).parent / "results" / "engine-gpu.json"
TRACE_STREAMS = 64


class Bench:
    def __init__(self, shape: str, alone: Alone, card: Card, options: argparse.Namespace) -> None:
        self.shape = shape
        self._alone = alone
        self._options = options
        self._repeats = options.repeats
        self._rng = np.random.default_rng(SEED)
        self.config = read_config(SHAPES[shape])
        self._bound = Bound(self.config, card)
        self.rows: list[Row] = []
        self.where: list[Where] = []
        self._probes: list[tuple[str, Callable[[], object]]] = []

    def run(self, wanted: list[str]) -> None:
        """The rows that are wanted."""
        began = time.perf_counter()
        self._alone.timed(self.shape).prepared.wait()
        taken = time.perf_counter() - began
        print(f"{self.shape:>5} compiled and captured the rest in {taken:.1f} s", flush=True)
        for name in ("single", "batch", "shared", "ttft"):
            if name in wanted:
                getattr(self, name)()
        if self._options.trace is not None:
            self.trace(self._options.trace)
        self._alone.close()

    def look(self) -> None:
        """Where the time of a short pass of each row goes. After all rows are measured: what the
        profiler leaves behind slows launches."""
        self._alone = Alone(self._alone.lanes)
        for what, work in self._probes:
            label = f"{self.shape} {what}"
            with profiled(label, self.where, self._alone, kernels=self._options.kernels):
                work()
        self._alone.close()

    def _probe(self, what: str, work: Callable[[], object]) -> None:
        self._probes.append((what, work))

    def ids(self, count: int) -> np.ndarray:
        return self._rng.integers(10, self.config.vocab, count).astype(np.int32)

    def _row(
        self, name: str, unit: str, bound: float, work: Callable[[], tuple[float, float]]
    ) -> None:
        """`work` returns (value, seconds); run once to warm up, then the median."""
        work()
        timed = self._alone.timed(self.shape)
        values, host, steps, seconds = [], [], 0, 0.0
        for _ in range(self._repeats):
            timed.steps, timed.waited_s = 0, 0.0
            value, taken = work()
            values.append(value)
            host.append((taken - timed.waited_s) / max(1, timed.steps))
            steps, seconds = timed.steps, taken
        value = statistics.median(values)
        share = value / bound if unit == "tok/s" else bound / value
        vllm = VLLM.get(self.shape, {}).get(name)
        goal = GOALS.get(self.shape, {}).get(name)
        row = Row(
            self.shape, name, value, unit, (min(values), max(values)), bound, share, vllm, goal,
            steps, seconds / max(1, steps) * 1e3, statistics.median(host) * 1e6,
        )  # fmt: skip
        self.rows.append(row)
        show(row)

    def single(self) -> None:
        def work() -> tuple[float, float]:
            taken = self._alone.answer([(self.shape, self.ids(128), 256)])
            return 256 / taken, taken

        self._row("single", "tok/s", self._bound.single(128, 256), work)
        prompt = self.ids(128)
        self._probe("single, 32 tokens", lambda: self._alone.answer([(self.shape, prompt, 32)]))

    def batch(self) -> None:
        def work() -> tuple[float, float]:
            asked = [(self.shape, self.ids(512), 128) for _ in range(128)]
            taken = self._alone.answer(asked)
            return 128 * 128 / taken, taken

        self._row("batch", "tok/s", self._bound.batch(128, 512, 128), work)
        asked = [(self.shape, self.ids(512), 16) for _ in range(128)]
        self._probe("batch, 16 tokens", lambda: self._alone.answer(asked))

    def shared(self) -> None:
        common = self.ids(2048)

        def work(*, fresh: bool, count: int = 64) -> tuple[float, float]:
            nonlocal common
            common = self.ids(2048) if fresh else common
            asked = [
                (self.shape, np.concatenate((common, self.ids(64))), count) for _ in range(128)
            ]
            taken = self._alone.answer(asked)
            return 128 * count / taken, taken

        for name, fresh in (("shared cold", True), ("shared warm", False)):
            bound = self._bound.shared(128, 2048, 64, 64, warm=not fresh)
            self._row(name, "tok/s", bound, lambda fresh=fresh: work(fresh=fresh))  # type: ignore[misc]
            self._probe(
                f"{name}, 16 tokens",
                lambda fresh=fresh: work(fresh=fresh, count=16),  # type: ignore[misc]
            )

    def ttft(self) -> None:
        prompt = self.ids(8192)

        def work(count: int, *, fresh: bool) -> tuple[float, float]:
            nonlocal prompt
            prompt = self.ids(count) if fresh else prompt
            taken = self._alone.first_token(self.shape, prompt)
            return taken * 1e3, taken

        for name, count, fresh in (
            ("ttft 1k", 1024, True),
            ("ttft 8k cold", 8192, True),
            ("ttft 8k warm", 8192, False),
        ):
            bound = (
                self._bound.prefill_s(count) if fresh else self._bound.prefill_s(PAGE, count - PAGE)
            )
            self._row(
                name,
                "ms",
                bound * 1e3,
                lambda count=count, fresh=fresh: work(count, fresh=fresh),  # type: ignore[misc]
            )
            self._probe(name, lambda count=count, fresh=fresh: work(count, fresh=fresh))  # type: ignore[misc]

    def trace(self, path: Path) -> None:
        """Mooncake's conversations, lengths and blocks an eighth of theirs, in their order, 64 at a
        time. The bound knows which tokens were asked before."""
        asked, fresh = read_trace(path, self.config.vocab)
        wanted = sum(out for _, out in asked)
        contexts = [float(len(prompt)) for prompt, _ in asked]
        each = [statistics.mean(contexts)] * TRACE_STREAMS
        linear = 2 * (self._bound.weights - self.config.vocab * self.config.hidden) * fresh
        steps = wanted / TRACE_STREAMS
        bound = wanted / (linear / self._bound.card.flop_s + steps * self._bound.decode_s(each))

        def work() -> tuple[float, float]:
            shift = int(self._rng.integers(1, 1000))  # nothing is known from the time before
            moved = [((prompt + shift) % self.config.vocab, out) for prompt, out in asked]
            began = time.perf_counter()
            self._alone.in_turn(self.shape, moved, TRACE_STREAMS)
            taken = time.perf_counter() - began
            return wanted / taken, taken

        self._row("trace", "tok/s", bound, work)
        some = [(prompt, min(out, 16)) for prompt, out in asked[:TRACE_STREAMS]]
        self._probe(
            f"trace, its first {len(some)}, 16 tokens at most",
            lambda: self._alone.in_turn(self.shape, some, TRACE_STREAMS),
        )
        prompts = sum(len(prompt) for prompt, _ in asked)
        print(f"      {len(asked)} conversations, {prompts:,} tokens in of which {fresh:,} new")


def asked_together(shape: str, wanted: int) -> list[tuple[str, np.ndarray, int]]:
    """New ones in each call."""
    rng = np.random.default_rng()
    vocab = int(SHAPES[shape]["vocab_size"])
    return [(shape, rng.integers(10, vocab, 128).astype(np.int32), wanted) for _ in range(32)]


def together(alone: Alone, shapes: list[str], repeats: int) -> dict[str, float]:
    """Tokens per second of each model alone, of both at once, and of each while both are asked, up
    to its own last answer: 32 requests each, 128 → 128."""
    found: dict[str, float] = {}
    for label, who in (*((s, [s]) for s in shapes), ("together", shapes)):
        seconds: dict[str, list[float]] = {shape: [] for shape in who}
        whole = []
        for _ in range(repeats + 1):  # the first warms up
            ended = alone.answer_each([one for s in who for one in asked_together(s, 128)])
            whole.append(max(ended.values()))
            for shape in who:
                seconds[shape].append(ended[shape])
        found[label] = len(who) * 32 * 128 / statistics.median(whole[1:])
        print(f"two models: {label:<9} {found[label]:9,.0f} tok/s", flush=True)
    for shape in shapes:
        rate = found[f"{shape} beside the other"] = 32 * 128 / statistics.median(seconds[shape][1:])
        share = rate / found[shape]
        print(f"two models: {shape:<9} {rate:9,.0f} tok/s beside the other, {share:.0%} of alone")
    one_after_another = sum(32 * 128 / found[shape] for shape in shapes)
    found["of one after another"] = len(shapes) * 32 * 128 / found["together"] / one_after_another
    print(f"two models: together takes {found['of one after another']:.0%} of one after another")
    return found


def write(path: Path, **found: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), **found}, indent=2))


def look_at_all(
    benches: list[Bench], lanes: dict[str, Lane], options: argparse.Namespace
) -> list[Where]:
    """Where the time of short passes goes: of each row, and of two models together."""
    print("Where the time of short passes goes, under the profiler:")
    for bench in benches:
        bench.look()
    where = [one for bench in benches for one in bench.where]
    if len(lanes) > 1:
        alone = Alone(lanes)
        with profiled("two models, 16 tokens", where, alone, kernels=options.kernels):
            alone.answer([one for shape in lanes for one in asked_together(shape, 16)])
        alone.close()
    return where


def run(options: argparse.Namespace) -> None:
    """All shapes asked for, one after another; with two, both together at the end."""
    wanted = options.rows.split(",")
    if wanted == ["start"] and len(options.shape) == 1:
        row = first_answer(options.shape[0])
        show(row)
        return write(options.json, rows=[asdict(row)])
    rows = [start_anew(shape) for shape in options.shape if "start" in wanted]
    for row in rows:
        show(row)
    if wanted == ["start"]:
        return write(options.json, rows=[asdict(row) for row in rows])
    device = torch.device("cuda", 0)
    card = measure_card(device)
    print(
        f"{card.name}: copies {card.copy_bytes_s / 1e12:.2f} TB/s, "
        f"multiplies {card.flop_s / 1e12:.0f} TFLOP/s",
        flush=True,
    )
    benches: list[Bench] = []
    lanes: dict[str, Lane] = {}
    for index, shape in enumerate(options.shape):
        share = 0.9 if index == len(options.shape) - 1 else 0.5
        lanes[shape] = make_gpu_lane(shape, shape, device, share)
        bench = Bench(shape, Alone({shape: lanes[shape]}), card, options)
        bench.run(wanted)
        rows += bench.rows
        benches.append(bench)
    found: dict[str, float] = {}
    if len(lanes) > 1:
        alone = Alone(lanes)
        found = together(alone, options.shape, options.repeats)
        alone.close()
    where = look_at_all(benches, lanes, options) if options.profile else []
    return write(
        options.json,
        card=asdict(card),
        rows=[asdict(row) for row in rows],
        together=found,
        where=[asdict(one) for one in where],
    )
