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
    start    process start → first answer                                        s

The bound of each row is the larger of memory and arithmetic, from what this card reached in this
run on a copy of 4 GiB and a product of 8,192³, with: every weight but the embedding read once a
step; each key and value read once (a shared prefix once for all); 2 FLOP a weight and token, and
4 · context · q_size a layer and token for attention. It knows no launch and no host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from bench.engine_gpu_alone import Alone, make_gpu_lane
from bench.engine_gpu_bound import Bound, Card, measure_card
from bench.engine_gpu_shapes import GOALS, PAGE, SEED, SHAPES, VLLM
from bench.engine_gpu_where import Where, profile_rows
from engine.lane import Lane
from engine.loading import read_config

RESULTS = Path(__file__).parent / "results" / "engine-gpu.json"
TRACE_BLOCK = 512
"""Tokens of a block in Mooncake's traces (Qin et al., FAST '25)."""
TRACE_SCALE = 8
TRACE_STREAMS = 64


@dataclass
class Row:
    shape: str
    name: str
    value: float
    unit: str
    spread: tuple[float, float]
    bound: float
    share: float
    """Of the bound: 1 is the bound itself."""
    vllm_h200: float | None
    goal_h200: float | None
    steps: int
    step_ms: float
    host_us: float
    """A step's time in which the engine's thread worked, not waited for the GPU."""


class Bench:
    def __init__(self, shape: str, alone: Alone, card: Card, repeats: int) -> None:
        self.shape = shape
        self._alone = alone
        self._repeats = repeats
        self._rng = np.random.default_rng(SEED)
        self.config = read_config(SHAPES[shape])
        self._bound = Bound(self.config, card)
        self.rows: list[Row] = []

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

    def batch(self) -> None:
        def work() -> tuple[float, float]:
            asked = [(self.shape, self.ids(512), 128) for _ in range(128)]
            taken = self._alone.answer(asked)
            return 128 * 128 / taken, taken

        self._row("batch", "tok/s", self._bound.batch(128, 512, 128), work)

    def shared(self) -> None:
        common = self.ids(2048)

        def work(*, fresh: bool) -> tuple[float, float]:
            nonlocal common
            common = self.ids(2048) if fresh else common
            asked = [(self.shape, np.concatenate((common, self.ids(64))), 64) for _ in range(128)]
            taken = self._alone.answer(asked)
            return 128 * 64 / taken, taken

        for name, fresh in (("shared cold", True), ("shared warm", False)):
            bound = self._bound.shared(128, 2048, 64, 64, warm=not fresh)
            self._row(name, "tok/s", bound, lambda fresh=fresh: work(fresh=fresh))  # type: ignore[misc]

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
        prompts = sum(len(prompt) for prompt, _ in asked)
        print(f"      {len(asked)} conversations, {prompts:,} tokens in of which {fresh:,} new")

    def start(self, began_s: float) -> None:
        """The first answer of this process; `began_s` of wall time have passed before."""
        taken = began_s + self._alone.answer([(self.shape, self.ids(128), 16)])
        goal = GOALS.get(self.shape, {}).get("start")
        vllm = VLLM.get(self.shape, {}).get("start")
        row = Row(
            self.shape, "start", taken, "s", (taken, taken), 0.0, 0.0, vllm, goal, 0, 0.0, 0.0
        )  # fmt: skip
        self.rows.append(row)
        show(row)


def read_trace(path: Path, vocab: int) -> tuple[list[tuple[np.ndarray, int]], int]:
    """Prompts and answer lengths; and how many tokens stand in no earlier prompt's blocks."""
    asked, known, fresh = [], set(), 0
    for line in path.read_text().splitlines():
        told = json.loads(line)
        length = max(2, told["input_length"] // TRACE_SCALE)
        blocks = [
            np.random.default_rng(block).integers(10, vocab, TRACE_BLOCK // TRACE_SCALE)
            for block in told["hash_ids"]
        ]
        prompt = np.concatenate(blocks)[:length].astype(np.int32)
        fresh += sum(
            min(TRACE_BLOCK // TRACE_SCALE, length - at * TRACE_BLOCK // TRACE_SCALE)
            for at, block in enumerate(told["hash_ids"])
            if block not in known
        )
        known |= set(told["hash_ids"])
        asked.append((prompt, max(1, told["output_length"] // TRACE_SCALE)))
    return asked, fresh


def show(row: Row) -> None:
    reference = "" if row.vllm_h200 is None else f"  vLLM(H200) {row.vllm_h200:8,.0f}"
    goal = "" if row.goal_h200 is None else f"  goal(H200) {row.goal_h200:8,.0f}"
    print(
        f"{row.shape:>5} {row.name:<13} {row.value:9,.1f} {row.unit:<5}"
        f" ({row.spread[0]:,.1f}–{row.spread[1]:,.1f})  bound {row.bound:9,.1f}"
        f" share {row.share:5.0%}{reference}{goal}"
        f"  steps {row.steps} × {row.step_ms:.3f} ms, host {row.host_us:.0f} µs",
        flush=True,
    )


def process_age_s() -> float:
    """Seconds since this process was started."""
    started = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    ticks = 100.0
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - started / ticks


def together(alone: Alone, shapes: list[str], repeats: int) -> dict[str, float]:
    """Tokens per second of each model alone, and of both at once: 32 requests each, 128 → 128."""
    rng = np.random.default_rng(SEED)

    def asked(shape: str) -> list[tuple[str, np.ndarray, int]]:
        vocab = int(SHAPES[shape]["vocab_size"])
        return [(shape, rng.integers(10, vocab, 128).astype(np.int32), 128) for _ in range(32)]

    found: dict[str, float] = {}
    for label, who in (*((s, [s]) for s in shapes), ("together", shapes)):
        alone.answer([one for shape in who for one in asked(shape)])
        seconds = [
            alone.answer([one for shape in who for one in asked(shape)]) for _ in range(repeats)
        ]
        found[label] = len(who) * 32 * 128 / statistics.median(seconds)
        print(f"two models: {label:<9} {found[label]:9,.0f} tok/s", flush=True)
    one_after_another = sum(32 * 128 / found[shape] for shape in shapes)
    found["of one after another"] = len(shapes) * 32 * 128 / found["together"] / one_after_another
    print(f"two models: together takes {found['of one after another']:.0%} of one after another")
    return found


def run(options: argparse.Namespace) -> None:
    """All shapes asked for, one after another; with two, both together at the end."""
    device = torch.device("cuda", 0)
    started = process_age_s()
    card = measure_card(device)
    spent = process_age_s() - started
    print(
        f"{card.name}: copies {card.copy_bytes_s / 1e12:.2f} TB/s, "
        f"multiplies {card.flop_s / 1e12:.0f} TFLOP/s",
        flush=True,
    )
    wanted = options.rows.split(",")
    rows: list[Row] = []
    where: list[Where] = []
    lanes: dict[str, Lane] = {}
    for index, shape in enumerate(options.shape):
        share = 0.9 if index == len(options.shape) - 1 else 0.5
        age, began = process_age_s() - spent, time.perf_counter()
        lanes[shape] = make_gpu_lane(shape, shape, device, share)
        alone = Alone({shape: lanes[shape]})
        bench = Bench(shape, alone, card, options.repeats)
        if "start" in wanted and index == 0:  # only a process's first model starts from nothing
            bench.start(age + time.perf_counter() - began)
        if wanted != ["start"]:
            began = time.perf_counter()
            alone.timed(shape).prepared.wait()
            taken = time.perf_counter() - began
            print(f"{shape:>5} compiled and captured the rest in {taken:.1f} s")
        for name in ("single", "batch", "shared", "ttft"):
            if name in wanted:
                getattr(bench, name)()
        if options.trace is not None:
            bench.trace(options.trace)
        if options.profile:
            where += profile_rows(shape, bench.ids, alone)
        alone.close()
        rows += bench.rows
    found = {}
    if len(lanes) > 1:
        alone = Alone(lanes)
        found = together(alone, options.shape, options.repeats)
        alone.close()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    written = {
        "card": asdict(card),
        "date": time.strftime("%Y-%m-%d"),
        "rows": [asdict(row) for row in rows],
        "together": found,
        "where": [asdict(one) for one in where],
    }
    options.json.write_text(json.dumps(written, indent=2))
