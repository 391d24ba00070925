"""One sequence's state: what the scheduler plans with and the runner computes on.

A sequence is one choice of one call. Prefill and decode are the same thing here (vLLM V1's idea):
`known` tokens exist (prompt + generated), `computed` of them have their KV in `pages`, and a step
computes a chunk of the rest. When a chunk reaches the last known token, the step also samples the
next one. Preemption is therefore just `computed = 0` and no pages: the tokens stay.

Where steps overlap, a token may have been drawn on the device by a step whose result has not been
read: it is `ahead`. The next step can compute on it before the host knows it, so `computed` may be
one more than `known` between a launch and the reading of the step before.

    tokens  [ prompt ........ | generated .. | free room ]
              ^0               ^num_prompt   ^known
              [ computed ......... ]

This file holds integers and settings only; tensors live with the runners.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from radix.lease import Lease

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class LogitBias:
    """What is added to which logits: arrays, made once for a call and shared by its choices. A call
    may name the whole vocabulary, and a step must not walk through it entry by entry."""

    ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, entries: tuple[tuple[int, float], ...]) -> LogitBias | None:
        """None where there is nothing to add."""
        if not entries:
            return None
        ids, values = zip(*entries, strict=True)
        return cls(np.array(ids, dtype=np.int64), np.array(values, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """`engine.contract.Sampling` with the model's defaults filled in: nothing is None but the seed.

    temperature 0 is greedy; top_k 0 and top_p 1 and min_p 0 are off. `seed` is this sequence's own
    (choice i of a seeded call uses a seed derived from both): a draw depends only on the seed and
    the token's position, so that batching, preemption and chunking cannot change it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: LogitBias | None = None
    seed: int = 0
    logprobs: int = -1
    """How many alternatives to report beside the sampled token's log-probability; -1: nothing."""

    @property
    def penalises(self) -> bool:
        """Whether a draw depends on the tokens before it, so that the host must know them all."""
        return bool(
            self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty
        )


class State(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Owned by the engine thread. Compared and hashed by identity."""

    id: int
    namespace: str
    """Tenant scope × model: the root of the prefix tree that this sequence may share."""
    tenant: str
    share: float
    tokens: Tokens
    num_prompt: int
    max_known: int
    """Prompt + at most this many generated tokens: where generation stops with "length"."""
    params: SamplingParams
    arrival: float
    deadline: float | None = None
    known: int = 0
    computed: int = 0
    ahead: int = 0
    """Tokens drawn by launched steps and not read yet: at most 1 when a step is planned."""
    cached: int = 0
    """Prompt tokens whose KV came from the tree when it was first admitted (usage)."""
    pages: list[int] = field(default_factory=list)
    """Page i holds tokens [i·page_size, (i+1)·page_size): leased ones first, then its own."""
    moved: int = 0
    """How often `pages` changed otherwise than by growing: for who keeps a copy of them."""
    lease: Lease | None = None
    state: State = State.WAITING
    admitted: float | None = None
    """When it first left the queue, on the engine's clock."""
    overtaken: int = 0
    """How many later arrivals were admitted before it."""
    preempted: bool = False
    """Whether it waits because its pages were taken away."""
    spent: int = 0
    """Tokens computed for it so far, again after each preemption."""

    @property
    def to_compute(self) -> int:
        """Tokens that the next step may compute. None beyond the last one that is wanted, and none
        while a draw waits for a token to be read."""
        if self.ahead and (self.known + 1 >= self.max_known or self.params.penalises):
            return 0
        return self.known + self.ahead - self.computed

    @property
    def prompt_read(self) -> int:
        """Prompt tokens that were computed, or found in the tree, at any time."""
        if self.known > self.num_prompt:
            return self.num_prompt
        return min(self.num_prompt, self.cached + self.spent)

    def append(self, token: int) -> None:
        """Add a generated token; the buffer grows by doubling."""
        self.ahead = max(0, self.ahead - 1)
        if self.known == len(self.tokens):
            grown = np.empty(max(16, 2 * self.known), dtype=np.int32)
            grown[: self.known] = self.tokens
            self.tokens = grown
        self.tokens[self.known] = token
        self.known += 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute tokens [sequence.computed, sequence.computed + length) in this step. Read before the
    scheduler advances: from then on its sequence stands elsewhere."""

    sequence: Sequence
    length: int

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the last known token, so that the next one is drawn."""
        return self.length == self.sequence.to_compute


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step drew for one sequence. `top`: (token id, log-probability), best first.

    Log-probabilities are the model's own (log-softmax of its logits, before temperature, penalties
    and cuts), as vLLM's and OpenAI's are.
    """

    sequence: Sequence
    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Runner(Protocol):
    """Runs one model's steps. `launch` enqueues, `Pending.result` waits: on a GPU step N is
    launched before step N−1 is read; on a CPU the work is done in `launch`."""

    @property
    def depth(self) -> int:
        """How many steps may be launched and not read: 1 or 2."""
        ...

    def launch(self, chunks: list[Chunk]) -> Pending:
        """Raises OutOfMemory where a smaller step might be possible. Sequences, and what earlier
        steps drew, are as they were; `recover` must come before the next launch."""
        ...

    def prepare(self) -> bool:
        """Nothing else is to do: do a piece of what later steps would have to wait for. False:
        nothing is left."""
        ...

    def recover(self) -> None:
        """A step failed and nothing of it is wanted: make the next launch possible. Raises
        RunnerLost where that cannot be."""
        ...


class OutOfMemory(Exception):
    """A step took more memory than there is. Pages hold what they held but for the positions that
    the step would have computed."""


class RunnerLost(Exception):
    """The device does not compute any more in this process. The text says what to do."""


class Pending(Protocol):
    def ready(self) -> bool:
        """Whether `result` would not wait."""
        ...

    def result(self) -> list[Sampled]:
        """One entry per chunk that samples, in the order of the chunks."""
        ...
