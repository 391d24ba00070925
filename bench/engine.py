"""Tokens per second on the CPU: this engine beside transformers, on the same model in one run.

    python -m bench.engine [CHECKPOINT ...] [--streams 1,8,32] [--threads 2] [--dtype bfloat16]
    python -m bench.engine --shape 8b --shape 0.6b          on a GPU instead: see engine_gpu.py

Streams are ragged, as a server's are: prompts of 16 to 400 tokens, answers of 16 to 200, all handed
over at once, drawn from one seed. Three ways to answer them, interleaved, medians of the repeats:

    engine       this engine as the gateway uses it: the async face, scheduler, prefix tree, text
    padded       transformers' generate on a left-padded batch; it runs until the longest is done
    continuous   transformers' continuous batching (paged KV, SDPA), each stream with its own length

Only wanted tokens count. Same dtype and threads for all; greedy; nobody stops early. Prompts are
new in each repeat, so that no prefix cache helps. Without weights in the directory, a model of its
config with random weights is measured: it computes the same.

Predicted for the 42M model in bf16, two threads of a Zen 5, before measuring: engine over the
better of the two 1.3 × at 1 (weights laid out once), 2.5 × at 8, 4 × at 32 (no padding, no copy of
the cache at each step).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.build import ModelSpec, build_lanes
from engine.contract import Call, Delta, Sampling, Trail
from engine.engine import Engine
from engine.runner import use_threads
from tests.support.checkpoints import make_checkpoint

DEMO = Path(__file__).parent.parent / "demo"
RESULTS = Path(__file__).parent / "results" / "engine.json"
CONTEXT = 1024


@dataclass(frozen=True)
class Stream:
    prompt: list[int]
    wanted: int


Answers = list[list[int]]
System = Callable[[list[Stream]], Answers]


@dataclass
class Row:
    model: str
    streams: int
    system: str
    tokens_per_s: float
    slowest: float
    fastest: float
    ratio: float
    """The engine's median over this system's."""


def draw_streams(count: int, vocab: int, rng: np.random.Generator) -> list[Stream]:
    lengths, wanted = rng.integers(16, 400, count), rng.integers(16, 200, count)
    return [
        Stream([int(token) for token in rng.integers(10, vocab, length)], int(number))
        for length, number in zip(lengths, wanted, strict=True)
    ]


# --------------------------------------------------------------------------- the systems


class OurEngine:
    """Answers streams as the gateway would, without HTTP."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        lanes = build_lanes({"model": ModelSpec(path, dtype, context=CONTEXT)}, kv_bytes=2**30)
        self._engine = Engine(lanes)
        self._runner = asyncio.Runner()
        self._engine.start()

    def __call__(self, streams: list[Stream]) -> Answers:
        async def all_of_them() -> Answers:
            return await asyncio.gather(*(self._answer(stream) for stream in streams))

        return self._runner.run(all_of_them())

    async def _answer(self, stream: Stream) -> list[int]:
        call = Call(
            kind="text",
            model="model",
            scope="bench",
            prompt=tuple(stream.prompt),
            sampling=Sampling(temperature=0.0),
            max_tokens=stream.wanted,
        )
        tokens: list[int] = []
        async with aclosing(self._engine.answerer("model")(call, Trail("bench"))) as events:
            async for event in events:
                if isinstance(event, Delta):
                    tokens += event.token_ids
        return tokens

    def close(self) -> None:
        self._runner.run(self._engine.stop())
        self._runner.close()


class Padded:
    """transformers' generate on one left-padded batch."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, streams: list[Stream]) -> Answers:
        width = max(len(stream.prompt) for stream in streams)
        ids = torch.zeros(len(streams), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, stream in enumerate(streams):
            ids[row, width - len(stream.prompt) :] = torch.tensor(stream.prompt)
            mask[row, width - len(stream.prompt) :] = 1
        output = self._model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(stream.wanted for stream in streams),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return [
            output[row, width : width + stream.wanted].tolist()
            for row, stream in enumerate(streams)
        ]


class Continuous:
    """transformers' continuous batching, one manager for all repeats."""

    def __init__(self, model: Any) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self._model = model
        self._generation = GenerationConfig(
            do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=CONTEXT
        )
        self._settings = ContinuousBatchingConfig(
            page_size=32, num_blocks=40 * CONTEXT // 32, max_batch_tokens=2048
        )

    def __call__(self, streams: list[Stream]) -> Answers:
        answers: dict[str, list[int]] = {}
        with self._model.continuous_batching_context_manager(
            generation_config=self._generation,
            continuous_batching_config=self._settings,
            persistent_manager=True,
        ) as manager:
            ids = [
                manager.add_request(stream.prompt, max_new_tokens=stream.wanted)
                for stream in streams
            ]
            while len(answers) < len(streams):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    answers[result.request_id] = list(result.generated_tokens)
        return [answers[request_id] for request_id in ids]


# --------------------------------------------------------------------------- measuring


def measure(
    systems: dict[str, System], count: int, vocab: int, repeats: int, seed: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Tokens per second of each repeat; the share of answers equal to the engine's."""
    rng = np.random.default_rng([seed, count])
    speeds: dict[str, list[float]] = {name: [] for name in systems}
    same: dict[str, list[bool]] = {name: [] for name in systems}
    for _ in range(repeats):
        streams = draw_streams(count, vocab, rng)
        answers: dict[str, Answers] = {}
        for name, system in systems.items():
            started = time.perf_counter()
            answers[name] = system(streams)
            taken = time.perf_counter() - started
            assert [len(a) for a in answers[name]] == [s.wanted for s in streams], name
            speeds[name].append(sum(s.wanted for s in streams) / taken)
        for name in systems:
            pairs = zip(answers["engine"], answers[name], strict=True)
            same[name] += [ours == theirs for ours, theirs in pairs]
    return speeds, {name: statistics.mean(found) for name, found in same.items()}


def rows_of(model: str, count: int, speeds: dict[str, list[float]]) -> list[Row]:
    ours = statistics.median(speeds["engine"])
    return [
        Row(model, count, name, statistics.median(v), min(v), max(v), ours / statistics.median(v))
        for name, v in speeds.items()
    ]


def bench_model(path: Path, options: argparse.Namespace) -> list[Row]:
    import transformers

    transformers.logging.set_verbosity_error()
    dtype = getattr(torch, options.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    engine = OurEngine(path, dtype)
    systems: dict[str, System] = {"engine": engine}
    if not options.only_engine:
        systems |= {"padded": Padded(model), "continuous": Continuous(model)}
    vocab = model.config.vocab_size
    rows: list[Row] = []
    try:
        measure(systems, 2, vocab, 1, options.seed + 1)  # warm up
        for count in options.streams:
            speeds, same = measure(systems, count, vocab, options.repeats, options.seed)
            rows += rows_of(path.name, count, speeds)
            show(rows[-len(systems) :], same)
    finally:
        engine.close()
        model.destroy_cached_continuous_batching_manager()
    return rows


def show(rows: list[Row], same: dict[str, float]) -> None:
    for row in rows:
        print(
            f"{row.model:>8} {row.streams:>3} streams  {row.system:<10}"
            f" {row.tokens_per_s:8.1f} tok/s  ({row.slowest:.1f}–{row.fastest:.1f})"
            f"   engine × {row.ratio:4.2f}   same answers {same[row.system]:4.0%}",
            flush=True,
        )


def ready(path: Path, folder: Path) -> Path:
    """A copy of a checkpoint that never ends an answer by itself; random weights if it has none."""
    copy = folder / path.name
    config = json.loads((path / "config.json").read_text())
    if any(path.glob("*.safetensors")):
        copy.mkdir()
        for file in path.iterdir():
            (copy / file.name).symlink_to(file.resolve())
    else:
        print(f"{path} has no weights yet: measuring random ones of its shape", file=sys.stderr)
        make_dummy(copy, config)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        forget_the_end(copy / name)
    return copy


def make_dummy(path: Path, config: dict[str, Any]) -> Path:
    return make_checkpoint(
        path,
        vocab=config["vocab_size"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        ffn=config["intermediate_size"],
        context=config["max_position_embeddings"],
        dtype=torch.bfloat16,
    )


def forget_the_end(path: Path) -> None:
    """Rewrite a settings file so that it names no end token."""
    if not path.exists():
        return
    settings = json.loads(path.read_text())
    path.unlink()  # not through the link
    path.write_text(json.dumps(settings | {"eos_token": None, "eos_token_id": None}))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "checkpoints", nargs="*", type=Path, default=[DEMO / "large", DEMO / "small"]
    )
    parser.add_argument(
        "--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only-engine", action="store_true")
    parser.add_argument("--json", type=Path)
    gpu = parser.add_argument_group("on a GPU (bench/engine_gpu.py)")
    gpu.add_argument("--shape", action="append", choices=["8b", "0.6b", "tiny"])
    gpu.add_argument("--rows", default="start,single,batch,shared,ttft")
    gpu.add_argument("--trace", type=Path, help="conversation_trace.jsonl of Mooncake")
    gpu.add_argument(
        "--no-profile",
        dest="profile",
        action="store_false",
        help="do not say where the time of a short pass of each row goes",
    )
    gpu.add_argument("--kernels", action="store_true", help="name the costliest kernels as well")
    return parser.parse_args()


def main() -> None:
    warnings.simplefilter("ignore")
    options = read_options()
    if options.shape:
        from bench.engine_gpu import RESULTS as GPU_RESULTS
        from bench.engine_gpu import run

        options.json = options.json or GPU_RESULTS
        return run(options)
    options.json = options.json or RESULTS
    use_threads(options.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in options.checkpoints:
            rows += bench_model(ready(path, Path(folder)), options)
    settings = {"threads": options.threads, "dtype": options.dtype, "repeats": options.repeats}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({**settings, "rows": [asdict(row) for row in rows]}, indent=2)
    )
    return None


if __name__ == "__main__":
    main()
