"""The engine alone for bench/engine_gpu.py: its own loop and thread, no HTTP, no event loop."""

from __future__ import annotations

import json
import queue
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from bench.engine_gpu_shapes import LIMITS, PAGE, SHAPES
from engine.build import make_lane, make_runner
from engine.contract import AnswerError, Call, End, Sampling, Trail
from engine.cuda.card import Room, kv_room, room_for
from engine.cuda.weights import Product
from engine.lane import Lane
from engine.loading import Checkpoint, dummy_decoder, read_config
from engine.loop import Loop
from engine.mailbox import Item, Mail
from engine.pool import page_bytes
from engine.request import Request, make_request
from engine.sequence import Chunk, Pending, Runner, Sampled, SamplingParams
from engine.template import ChatTemplate
from engine.text import Text


class Inline:
    """An office that hands out what it is given at once."""

    def deliver(self, mail: Mail) -> bool:
        for counter, items in mail:
            assert isinstance(counter, Counter)
            counter.put(items)
        return True


class Counter:
    """Stands for a mailbox: notes when a request's first token came and when it ended."""

    office = Inline()

    def __init__(self, ended: queue.SimpleQueue[Counter]) -> None:
        self.due = 0.0
        self.first: float | None = None
        self.end: End | AnswerError | None = None
        self.at = 0.0
        self._ended = ended

    def put(self, items: list[Item]) -> None:
        last = items[-1]
        if isinstance(last, End | AnswerError):
            self.end, self.at = last, time.perf_counter()
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
            mailbox=counter,
            arrival=time.monotonic(),
            first_id=self._ids << 8,
            seed=0,
        )
        self._loop.submit(request)
        return counter, request

    def answer(self, asked: list[tuple[str, np.ndarray, int]]) -> float:
        """Ask all at once; seconds until the last answer is whole."""
        return max(self.answer_each(asked).values())

    def answer_each(self, asked: list[tuple[str, np.ndarray, int]]) -> dict[str, float]:
        """The same for each model: seconds until its last answer."""
        began = time.perf_counter()
        whose = {self.submit(name, prompt, wanted)[0]: name for name, prompt, wanted in asked}
        last: dict[str, float] = {}
        for _ in asked:
            counter = self._ended.get(timeout=300)
            assert isinstance(counter.end, End), counter.end
            name = whose[counter]
            last[name] = max(last.get(name, 0.0), counter.at - began)
        return last

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
