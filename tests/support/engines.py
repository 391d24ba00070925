"""Lanes for tests: a runner that checks KV without a model, and tiny real models."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from engine.build import make_lane
from engine.contract import Answerer, Call, Delta, End, Event, Finish, Message, Part, Start, Trail
from engine.kernels.attention import TorchAttention
from engine.lane import Lane
from engine.loading import load_decoder, read_checkpoint
from engine.pool import make_pool
from engine.runner import CpuRunner
from engine.scheduler import Limits, Scheduler
from engine.sequence import Chunk, Sampled, Sequence, Tokens
from engine.template import ChatTemplate
from engine.text import Text
from radix import PageAllocator, RadixTree
from tests.support.checkpoints import CHAT_TEMPLATE, train_tokenizer


class KvPending:
    """A step of a `KvRunner`. `after` is called when it is read and may raise."""

    def __init__(self, drawn: list[Sampled], after: Callable[[], None]) -> None:
        self._drawn = drawn
        self._after = after

    def ready(self) -> bool:
        return True

    def result(self) -> list[Sampled]:
        self._after()
        return self._drawn


class KvRunner:
    """A runner whose "KV" of a token is the token itself, with its namespace.

    It writes where a real one would, and before it draws it reads the whole context back: a page
    that is shared wrongly, freed early or never computed shows at once. What it draws depends on
    the context, and on the seed where the temperature is above 0. `before` is called at each launch
    and may raise; `depth` 2 lets the engine launch a step before it has read the one before.
    """

    VOCAB = 384

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        before: Callable[[list[Chunk]], None] = lambda _: None,
        avoid: frozenset[int] = frozenset({0, 1, 2}),
        depth: int = 1,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._page_size = page_size
        self._tokens = np.full((num_pages, page_size), -1, dtype=np.int64)
        self._owner: dict[tuple[int, int], str] = {}
        self._before = before
        self._avoid = avoid
        self._after = after
        self._pool: dict[Sequence, int] = {}
        self.depth = depth
        self.steps = 0
        self.recovered = 0
        self.to_prepare = 0
        """Pieces of work that are done when nothing else is to do."""

    def launch(self, chunks: list[Chunk]) -> KvPending:
        self._before(chunks)
        self.steps += 1
        for chunk in chunks:
            self._write(chunk)
        drawn = [self._draw(chunk.sequence) for chunk in chunks if chunk.samples]
        self._pool |= {sampled.sequence: sampled.token for sampled in drawn}
        return KvPending(drawn, self._after)

    def prepare(self) -> bool:
        self.to_prepare -= 1
        return self.to_prepare >= 0

    def recover(self) -> None:
        self.recovered += 1

    def _write(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        tokens = self._all_tokens(sequence, sequence.computed + chunk.length)
        for position in range(sequence.computed, sequence.computed + chunk.length):
            page, offset = self._slot(sequence, position)
            self._tokens[page, offset] = tokens[position]
            self._owner[page, offset] = sequence.namespace

    def _all_tokens(self, sequence: Sequence, count: int) -> Tokens:
        """The sequence's first `count` tokens; what the host does not know yet is in the pool."""
        assert count <= sequence.known + sequence.ahead, "a token that nobody has drawn"
        tokens = sequence.tokens[: min(count, sequence.known)]
        if count > sequence.known:
            tokens = np.append(tokens, np.int32(self._pool[sequence]))
        return tokens

    def _draw(self, sequence: Sequence) -> Sampled:
        assert not (sequence.ahead and sequence.params.penalises), "it must see what was drawn"
        tokens = self._all_tokens(sequence, sequence.known + sequence.ahead)
        for position, token in enumerate(tokens):
            page, offset = self._slot(sequence, position)
            assert self._tokens[page, offset] == token, "another's KV"
            assert self._owner[page, offset] == sequence.namespace, "another tenant's KV"
        chance = sequence.params.seed if sequence.params.temperature > 0 else 0
        return Sampled(sequence, self._next(tokens, chance), -0.5, ((5, -0.5), (6, -1.5)))

    def _next(self, tokens: Tokens, chance: int) -> int:
        weights = np.arange(1, len(tokens) + 1)
        token = int((tokens * weights).sum() * 31 + chance) % self.VOCAB
        while token in self._avoid:
            token += 7
        return token

    def _slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        return sequence.pages[position // self._page_size], position % self._page_size


def tiny_text() -> Text:
    """The tokenizer and template of the tiny checkpoints."""
    tokenizer = Tokenizer.from_str(train_tokenizer(384))
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    return Text(tokenizer, ChatTemplate(CHAT_TEMPLATE, names))


def fake_lane(
    name: str = "small",
    *,
    num_pages: int = 64,
    page_size: int = 4,
    limits: Limits | None = None,
    context: int = 512,
    runner: KvRunner | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Lane:
    """A lane over a `KvRunner`."""
    tree = RadixTree(PageAllocator(num_pages), page_size)
    return Lane(
        name=name,
        text=tiny_text(),
        tree=tree,
        scheduler=Scheduler(tree, limits or Limits(), clock),
        runner=runner or KvRunner(num_pages, page_size),
        context=context,
        vocab=KvRunner.VOCAB,
        stop_ids=frozenset({0, 2}),
    )


def real_lane(
    directory: Path,
    name: str = "small",
    *,
    num_pages: int = 256,
    page_size: int = 8,
    limits: Limits | None = None,
) -> Lane:
    """A lane over a tiny checkpoint, fp32 on the CPU, with a pool of any size."""
    checkpoint = read_checkpoint(directory)
    config = checkpoint.config
    pool = make_pool(config, page_size=page_size, num_pages=num_pages, dtype=torch.float32)
    decoder = load_decoder(checkpoint, torch.float32)
    return make_lane(
        name,
        checkpoint,
        Text.load(directory),
        CpuRunner(decoder, pool, TorchAttention(config, pool)),
        num_pages=num_pages,
        page_size=page_size,
        limits=limits or Limits(),
        clock=time.monotonic,
    )


def chat(text: str = "Hello", **fields: object) -> Call:
    """A chat of one user message."""
    message = Message("user", (Part("text", text),))
    defaults = {"kind": "chat", "model": "small", "scope": "s", "messages": (message,)}
    return Call(**{**defaults, **fields})  # type: ignore[arg-type]


class Answered:
    """What an answerer said, taken apart."""

    def __init__(self, events: list[Event], trail: Trail) -> None:
        self.events = events
        self.trail = trail
        self.deltas = [event for event in events if isinstance(event, Delta)]
        self.start = next(event for event in events if isinstance(event, Start))
        self.reasons = {e.index: e.reason for e in events if isinstance(e, Finish)}
        self.usage = next(event.usage for event in events if isinstance(event, End))

    def text(self, index: int = 0) -> str:
        return "".join(d.payload for d in self.deltas if d.index == index)

    def tokens(self, index: int = 0) -> list[int]:
        return [token for d in self.deltas if d.index == index for token in d.token_ids]

    def logprobs(self, index: int = 0) -> list[object]:
        return [entry for d in self.deltas if d.index == index for entry in d.logprobs]


async def ask(answerer: Answerer, call: Call, trail: Trail | None = None) -> Answered:
    """The whole answer. Errors are raised."""
    trail = trail or Trail("r1")
    events = [event async for event in answerer(call, trail)]
    return Answered(events, trail)


def canonical(value: object) -> str:
    """JSON as calls hold it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
