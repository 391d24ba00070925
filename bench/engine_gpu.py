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
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from engine.build import make_lane, make_runner
from engine.contract import AnswerError, Call, End, Sampling, Trail
from engine.cuda.card import Room, kv_room, room_for
from engine.cuda.weights import Product
from engine.lane import Lane
from engine.loading import Checkpoint, dummy_decoder, read_config
from engine.loop import Loop
from engine.models.config import DecoderConfig
from engine.pool import page_bytes
from engine.request import Request, make_request
from engine.scheduler import Limits
from engine.sequence import Chunk, Pending, Runner, Sampled, SamplingParams
from engine.template import ChatTemplate
from engine.text import Text

RESULTS = Path(__file__).parent / "results" / "engine-gpu.json"
PAGE = 16
SEED = 11
LIMITS = Limits(max_batched_tokens=8192, max_running=256)
CONTEXT = 16_384
TRACE_BLOCK = 512
"""Tokens of a block in Mooncake's traces (Qin et al., FAST '25)."""
TRACE_SCALE = 8
TRACE_STREAMS = 64

_COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": CONTEXT}
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {  # Llama-3.1-8B
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        **_COMMON,
    },
    "0.6b": {  # Qwen3-0.6B
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        **_COMMON,
    },
    "tiny": {  # to see that it runs
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        **_COMMON,
    },
}

VLLM: dict[str, dict[str, float]] = {  # 0.26.0 on an H200
    "8b": {
        "single": 202, "batch": 6134, "shared cold": 7525, "shared warm": 8792,
        "ttft 1k": 27, "ttft 8k cold": 213, "ttft 8k warm": 19, "start": 64,
    },
    "0.6b": {
        "single": 609, "batch": 22377, "shared cold": 15261, "shared warm": 15837,
        "ttft 1k": 14, "ttft 8k cold": 32, "ttft 8k warm": 9.7,
    },
}  # fmt: skip
GOALS: dict[str, dict[str, float]] = {  # on an H200
    "8b": {
        "single": 215, "batch": 7000, "shared cold": 10000, "shared warm": 13000,
        "ttft 1k": 26, "ttft 8k cold": 205, "ttft 8k warm": 6, "start": 20,
    },
    "0.6b": {
        "single": 1200, "batch": 30000, "shared cold": 25000, "shared warm": 40000,
        "ttft 1k": 5, "ttft 8k cold": 28, "ttft 8k warm": 4,
    },
}  # fmt: skip


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


@dataclass(frozen=True)
class Card:
    name: str
    copy_bytes_s: float
    flop_s: float


def measure_card(device: torch.device) -> Card:
    """What this card reaches, today."""
    copied = _copy_s(1 << 32, device)
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
    b, out = torch.randn_like(a), torch.empty_like(a)
    product = _median_s(lambda: torch.mm(a, b, out=out))
    name = torch.cuda.get_device_name(device)
    return Card(name, 2 * (1 << 32) / copied, 2 * 8192**3 / product)


def _copy_s(size: int, device: torch.device) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return _median_s(lambda: target.copy_(source))


def _median_s(work: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return statistics.median(times)


# --------------------------------------------------------------------------- the engine, alone


class Inline:
    """Stands for an event loop: what the engine's thread hands over is taken on the spot."""

    def call_soon_threadsafe(self, deliver: Callable[[Any], None], batch: Any) -> None:
        deliver(batch)


class Counter:
    """Stands for a mailbox: notes when a request's first token came and when it ended."""

    loop = Inline()
    due = 0.0

    def __init__(self, ended: queue.SimpleQueue[Counter]) -> None:
        self.first: float | None = None
        self.end: End | AnswerError | None = None
        self.at = 0.0
        self._ended = ended

    def put(self, item: object) -> None:
        if isinstance(item, End | AnswerError):
            self.end, self.at = item, time.perf_counter()
            self._ended.put(self)


class Timed:
    """A runner that notes how long its caller waits for results."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.prepared = threading.Event()
        self.steps = 0
        self.waited_s = 0.0

    @property
    def depth(self) -> int:
        return self._runner.depth

    def launch(self, chunks: list[Chunk]) -> Pending:
        self.steps += 1
        return _TimedPending(self._runner.launch(chunks), self)

    def prepare(self) -> bool:
        more = self._runner.prepare()
        if not more:
            self.prepared.set()
        return more

    def recover(self) -> None:
        self._runner.recover()


class _TimedPending:
    def __init__(self, pending: Pending, timed: Timed) -> None:
        self._pending = pending
        self._timed = timed

    def ready(self) -> bool:
        return self._pending.ready()

    def result(self) -> list[Sampled]:
        began = time.perf_counter()
        drawn = self._pending.result()
        self._timed.waited_s += time.perf_counter() - began
        return drawn


class Alone:
    """Some models under one engine loop, in a thread of its own."""

    def __init__(self, lanes: dict[str, Lane]) -> None:
        self.lanes = lanes
        self._ended: queue.SimpleQueue[Counter] = queue.SimpleQueue()
        self._ids = 0
        self._loop = Loop(lanes, time.monotonic)
        self._thread = threading.Thread(target=self._loop.run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.stop()
        self._thread.join()

    def timed(self, name: str) -> Timed:
        runner = self.lanes[name].runner
        assert isinstance(runner, Timed)
        return runner

    def submit(self, name: str, prompt: np.ndarray, wanted: int) -> tuple[Counter, Request]:
        self._ids += 1
        call = Call(
            kind="text",
            model=name,
            scope="bench",
            prompt=(1,),
            sampling=Sampling(temperature=0.0),
            max_tokens=wanted,
        )
        counter = Counter(self._ended)
        request = make_request(
            call,
            Trail(f"b{self._ids}"),
            self.lanes[name],
            prompt,
            mailbox=counter,  # type: ignore[arg-type]
            arrival=time.monotonic(),
            first_id=self._ids << 8,
            seed=0,
        )
        self._loop.submit(request)
        return counter, request

    def answer(self, asked: list[tuple[str, np.ndarray, int]]) -> float:
        """Ask all at once; seconds until the last answer is whole."""
        began = time.perf_counter()
        for name, prompt, wanted in asked:
            self.submit(name, prompt, wanted)
        last = began
        for _ in asked:
            counter = self._ended.get(timeout=300)
            assert isinstance(counter.end, End), counter.end
            last = max(last, counter.at)
        return last - began

    def in_turn(self, name: str, asked: list[tuple[np.ndarray, int]], streams: int) -> None:
        """Ask for these prompts and answer lengths in order, `streams` of them at any time."""
        for prompt, wanted in asked[:streams]:
            self.submit(name, prompt, wanted)
        for ended in range(len(asked)):
            counter = self._ended.get(timeout=300)
            assert isinstance(counter.end, End), counter.end
            if ended + streams < len(asked):
                self.submit(name, *asked[ended + streams])

    def first_token(self, name: str, prompt: np.ndarray) -> float:
        """Seconds to the first token of one request."""
        return self.answer([(name, prompt, 1)])


def make_gpu_lane(name: str, shape: str, device: torch.device, kv_share: float) -> Lane:
    """A lane with random weights; `kv_share` of the memory that is free afterwards for its KV."""
    config = read_config(SHAPES[shape])
    dtype = torch.bfloat16
    decoder = dummy_decoder(config, dtype, device=device, product=Product)
    torch.cuda.empty_cache()
    room = room_for(config, dtype, LIMITS.max_batched_tokens, LIMITS.max_running)
    budget = kv_room(device, {name: replace_weights(room)})
    num_pages = int(kv_share * budget) // page_bytes(config, PAGE, dtype)
    runner = make_runner(decoder, page_size=PAGE, num_pages=num_pages, limits=LIMITS)
    return make_lane(
        name,
        Checkpoint(Path(), config, (), SamplingParams(), {}, dtype),
        bench_text(config.vocab),
        Timed(runner),
        num_pages=num_pages,
        page_size=PAGE,
        limits=LIMITS,
        clock=time.monotonic,
    )


def replace_weights(room: Room) -> Room:
    """The weights are there already."""
    return replace(room, weights=0)


def bench_text(vocab: int) -> Text:
    """A tokenizer in which every id of the model has a text, as a real one's have."""
    from tests.support.checkpoints import CHAT_TEMPLATE, train_tokenizer

    raw = json.loads(train_tokenizer(384))
    words = raw["model"]["vocab"]
    words |= {f"Ġw{number}": number for number in range(len(words), vocab)}
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    return Text(Tokenizer.from_str(json.dumps(raw)), ChatTemplate(CHAT_TEMPLATE, names))


# --------------------------------------------------------------------------- bounds


@dataclass(frozen=True)
class Bound:
    """The least time of some work on a card."""

    config: DecoderConfig
    card: Card

    @property
    def weights(self) -> int:
        """Numbers that a decode step reads: all weights but an embedding of their own."""
        config = self.config
        return config.parameters - (0 if config.tied else config.vocab * config.hidden)

    @property
    def kv_token(self) -> int:
        return 2 * self.config.layers * self.config.kv_size * 2

    def decode_s(self, contexts: list[float], shared: float = 0.0) -> float:
        """One step of rows with so many tokens of their own, and `shared` ones for all."""
        read = 2 * self.weights + (sum(contexts) + shared) * self.kv_token
        rows = len(contexts)
        attended = sum(contexts) + rows * shared
        flops = 2 * self.weights * rows + self._attention(attended)
        return max(read / self.card.copy_bytes_s, flops / self.card.flop_s)

    def prefill_s(self, tokens: int, before: int = 0) -> float:
        """`tokens` behind `before` cached ones. The head is computed for one row."""
        linear = self.weights - self.config.vocab * self.config.hidden
        attended = tokens * before + tokens * tokens / 2
        flops = 2 * linear * tokens + self._attention(attended)
        read = 2 * self.weights + (before + tokens) * self.kv_token
        return max(read / self.card.copy_bytes_s, flops / self.card.flop_s)

    def _attention(self, pairs: float) -> float:
        return 4 * pairs * self.config.q_size * self.config.layers

    def single(self, prompt: int, out: int) -> float:
        steps = sum(self.decode_s([prompt + at]) for at in range(1, out))
        return out / (self.prefill_s(prompt) + steps)

    def batch(self, count: int, prompt: int, out: int) -> float:
        steps = sum(self.decode_s([prompt + at] * count) for at in range(1, out))
        return count * out / (self._all_prefill(count, prompt) + steps)

    def shared(self, count: int, common: int, own: int, out: int, *, warm: bool) -> float:
        steps = sum(self.decode_s([own + at] * count, common) for at in range(1, out))
        first = 0.0 if warm else self.prefill_s(common)
        flops = self.prefill_s(own, common)
        prefill = max(flops, self._all_prefill(count, own, common))
        return count * out / (first + prefill + steps)

    def _all_prefill(self, count: int, tokens: int, before: int = 0) -> float:
        linear = self.weights - self.config.vocab * self.config.hidden
        pairs = count * (tokens * before + tokens * tokens / 2)
        return (2 * linear * tokens * count + self._attention(pairs)) / self.card.flop_s


# --------------------------------------------------------------------------- the rows


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


@dataclass
class Where:
    """Where the time of one short pass went."""

    what: str
    wall_ms: float
    busy_ms: float
    """Of the GPU; the rest of the wall is launch gaps, and the host before and behind."""
    launches: int
    kernels: list[tuple[str, int, float]]
    """Name, count, ms; the costliest first."""


@contextmanager
def profiled(label: str, found: list[Where]) -> Iterator[None]:
    """Note where the GPU's time goes while inside."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        yield
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    busy: dict[str, tuple[float, int]] = {}
    for event in profiler.events():
        total, count = busy.get(event.name, (0.0, 0))
        if event.device_time_total > 0:
            busy[event.name] = (total + event.device_time_total, count + 1)
    kernels = sorted(((n, c, us / 1e3) for n, (us, c) in busy.items()), key=lambda one: -one[2])
    where = Where(
        label, wall * 1e3, sum(k[2] for k in kernels), sum(k[1] for k in kernels), kernels[:16]
    )
    found.append(where)
    print(
        f"-- {label}: wall {where.wall_ms:.1f} ms, GPU busy {where.busy_ms:.1f} ms"
        f" in {where.launches} launches",
        flush=True,
    )
    for name, count, spent in where.kernels:
        print(f"   {spent:9.2f} ms {count:6d} × {spent / count * 1e3:8.1f} µs  {name[:90]}")


def profile_rows(bench: Bench, alone: Alone) -> list[Where]:
    """One short pass of each kind under the profiler."""
    shape = bench.shape
    found: list[Where] = []
    with profiled(f"{shape} single, 32 tokens", found):
        alone.answer([(shape, bench.ids(128), 32)])
    with profiled(f"{shape} batch 128, 16 tokens", found):
        alone.answer([(shape, bench.ids(512), 16) for _ in range(128)])
    common = bench.ids(2048)
    with profiled(f"{shape} shared 128, 16 tokens", found):
        alone.answer([(shape, np.concatenate((common, bench.ids(64))), 16) for _ in range(128)])
    prompt = bench.ids(8192)
    with profiled(f"{shape} 8k cold", found):
        alone.first_token(shape, prompt)
    with profiled(f"{shape} 8k warm", found):
        alone.first_token(shape, prompt)
    return found


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
            where += profile_rows(bench, alone)
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
