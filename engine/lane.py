"""One model's lane through the engine: what it reads, plans and computes with, and its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.rate import Rate
from engine.scheduler import Scheduler
from engine.sequence import Chunk, Runner, SamplingParams
from engine.text import Text
from radix import RadixTree


@dataclass(frozen=True, slots=True)
class LaneStats:
    """One model's figures at one moment. Pages: free + running + cached = all; leased is a part of
    cached. Totals count from the start."""

    running: int = 0
    waiting: int = 0
    pages_free: int = 0
    pages_running: int = 0
    pages_cached: int = 0
    pages_leased: int = 0
    batch_sequences: int = 0
    batch_tokens: int = 0
    tokens_per_s: float = 0.0
    """Generated, over about the last 10 s."""
    steps_total: int = 0
    generated_total: int = 0
    prefilled_total: int = 0
    cached_total: int = 0
    preemptions_total: int = 0
    displaced_total: int = 0
    """Set back for the part of another tenant; preemptions are for want of pages, or of
    memory in a step."""
    evicted_pages_total: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """Owned by the engine thread but for `text` and the settings, which any thread may read."""

    name: str
    text: Text
    tree: RadixTree
    scheduler: Scheduler
    runner: Runner
    context: int
    """The longest sequence, prompt and answer, that the model was made for."""
    vocab: int
    """Rows of the model's output: ids below this can be drawn."""
    stop_ids: frozenset[int]
    defaults: SamplingParams = field(default_factory=SamplingParams)
    """The model's own sampling settings, for what a call leaves open."""

    @property
    def max_tokens(self) -> int:
        """The longest sequence that model and memory allow."""
        return min(self.context, self.scheduler.max_tokens)


class Tally:
    """Counts one lane's work. Owned by the engine thread."""

    def __init__(self, lane: Lane, clock: Callable[[], float]) -> None:
        self._lane = lane
        self._generated_rate = Rate(clock, decay_s=10.0)
        self._steps = self._generated = self._prefilled = self._cached = 0
        self._batch_sequences = self._batch_tokens = 0

    def step(self, chunks: list[Chunk], generated: int) -> None:
        """One step has been computed."""
        tokens = sum(chunk.length for chunk in chunks)
        self._steps += 1
        self._batch_sequences = len(chunks)
        self._batch_tokens = tokens
        self._generated += generated
        self._prefilled += tokens - sum(chunk.length == 1 for chunk in chunks)
        self._generated_rate.count(generated)

    def cached(self, tokens: int) -> None:
        """So many prompt tokens of a finished request were not computed."""
        self._cached += tokens

    def tokens_per_s(self) -> float:
        """Generated, over about the last 10 s. For any thread."""
        return self._generated_rate.per_s()

    def stats(self) -> LaneStats:
        """Now."""
        scheduler, pages = self._lane.scheduler, self._lane.tree.stats()
        busy = scheduler.has_work
        return LaneStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            pages_free=pages.free,
            pages_running=pages.running,
            pages_cached=pages.cached,
            pages_leased=pages.leased,
            batch_sequences=self._batch_sequences if busy else 0,
            batch_tokens=self._batch_tokens if busy else 0,
            tokens_per_s=self.tokens_per_s(),
            steps_total=self._steps,
            generated_total=self._generated,
            prefilled_total=self._prefilled,
            cached_total=self._cached,
            preemptions_total=scheduler.num_preemptions,
            displaced_total=scheduler.num_displaced,
            evicted_pages_total=pages.evicted,
        )
