"""What an answer costs on each model, in integer nano-USD, and what is expected before it is made.

Money is integers: one dollar per million tokens is exactly 1,000 nano-USD a token, sums never
drift, and the ledger's account closes to the last unit. Expectations are estimates and may be
floats until they are rounded here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.contract import Call, Delta, Message, Part, Usage

CHARS_PER_TOKEN = 4.0
"""For models whose tokenizer we cannot ask. English prose has 4–5, code and digits 2–3."""
BYTES_PER_TOKEN = 4
NOT_TEXT_CHARS = 4096
"""An image, whatever its bytes: large providers count some 85 to 1,500 tokens."""


@dataclass(frozen=True, slots=True)
class Price:
    """Nano-USD per token; `cached_nano` is for prompt tokens whose KV was already there."""

    input_nano: int = 0
    output_nano: int = 0
    cached_nano: int = 0

    @classmethod
    def per_mtok(
        cls, price_in: float, price_out: float, price_cached: float | None = None
    ) -> Price:
        """From dollars per million tokens, as providers state prices and sluice.toml does."""
        cached = price_in if price_cached is None else price_cached
        return cls(round(price_in * 1000), round(price_out * 1000), round(cached * 1000))

    def of(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> int:
        """Nano-USD of one answer."""
        fresh = prompt_tokens - cached_tokens
        return (
            fresh * self.input_nano
            + cached_tokens * self.cached_nano
            + completion_tokens * self.output_nano
        )

    def of_usage(self, usage: Usage) -> int:
        return self.of(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


@dataclass(slots=True)
class ExpectedLength:
    """How long a model's answers are: a running mean, in tokens, owned by the cascade.

    An exponential mean over the last ~50 answers; a lookup and a multiply, no history."""

    start_tokens: float = 200.0
    weight: float = 0.02
    _means: dict[str, float] = field(default_factory=dict)

    def expect(self, model: str, call: Call) -> int:
        mean = self._means.get(model, self.start_tokens)
        return math.ceil(mean if call.max_tokens is None else min(mean, call.max_tokens))

    def learn(self, model: str, completion_tokens: int) -> None:
        mean = self._means.get(model, self.start_tokens)
        self._means[model] = mean + self.weight * (completion_tokens - mean)


def estimate_prompt_tokens(call: Call) -> int:
    """From the characters; exact where the prompt came as token ids. The one estimate of a prompt
    whose tokens nobody tells: routes, token rates and unfinished answers are counted by it."""
    if call.kind == "text" and not isinstance(call.prompt, str):
        return len(call.prompt)
    chars = len(call.prompt) if call.kind == "text" else 0
    chars += _chars(call.messages) + len(call.tools or "") + len(call.response_format or "")
    return math.ceil(chars / CHARS_PER_TOKEN)


def estimate_held_tokens(call: Call) -> int:
    """What the model that answered the last turn has in its prefix tree: all up to that answer."""
    messages = call.messages
    last = max((at for at, one in enumerate(messages) if one.role == "assistant"), default=-1)
    chars = _chars(messages[: last + 1]) + len(call.tools or "")
    return math.floor(chars / CHARS_PER_TOKEN) if last >= 0 else 0


def _chars(messages: Sequence[Message]) -> int:
    chars = 0
    for message in messages:
        chars += 16 + sum(map(_size, message.parts))
        chars += sum(len(tool.name) + len(tool.arguments) for tool in message.tool_calls)
    return chars


def _size(part: Part) -> int:
    return len(part.body) if part.kind == "text" else NOT_TEXT_CHARS


@dataclass(slots=True)
class Heard:
    """The tokens of an answer that says no counts: one a delta, or more where there is more text
    than one token holds (some servers send several at a time)."""

    deltas: int = 0
    text_bytes: int = 0
    known: int = 0
    """In deltas that tell their tokens."""

    def add(self, delta: Delta) -> None:
        told = len(delta.token_ids) or len(delta.logprobs)
        if told:
            self.known += told
            return
        self.deltas += 1
        self.text_bytes += len(delta.payload.encode())

    @property
    def tokens(self) -> int:
        return self.known + max(self.deltas, self.text_bytes // BYTES_PER_TOKEN)
