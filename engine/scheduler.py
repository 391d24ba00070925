"""Who runs next. Integers only: no tensor, no text, no thread.

Problem. Every step the model can compute so many tokens. Decodes want one each and must not wait;
prompts want thousands; KV pages run out in the middle of answers; tenants compete.

Choice. One token budget a step, dealt in three passes:

    1. every running sequence that lacks one token gets it           (decode: never starved)
    2. running prompts get what is left, oldest first                (chunked prefill)
    3. waiting sequences are admitted into the rest of the budget    (the tenant served least first)

*Admission* takes the pages for all that a sequence has, at once, or does not happen: admitting by
chunk lets prompts starve each other half-way. It also leaves headroom for those that run. Inside a
tenant the longest cached prefix among the first few goes first, while the tree still holds it, but
nobody is overtaken more than `max_overtakes` times. A sequence that would compute again what a
running prompt is computing right now waits for it (a twin: the siblings of n > 1, a burst with one
system prompt) and then finds it in the tree.

*Preemption* when a decode finds no page: of the tenant furthest over its share, the youngest gives
its pages up. The full ones go into the tree, so coming back is mostly a hit. It waits at the head
of its queue, and comes back only when it can also grow by half, else two long answers would throw
each other out for every page.

*Refusal* at submission: what can never fit, and whatever comes when the queue is full; a tenant may
always queue its part of it, so that a flood fills its own part only.

Rejected. Prefill first (mini-sglang: decodes stall behind prompts). Reserving max_tokens (most
answers end early; the pool stands empty). Skipping a head that does not fit (big prompts starve).

Price. A head that does not fit blocks the queue until pages are freed.
Source: vLLM V1's unified budget; Sarathi-Serve's chunks; SGLang's longest-prefix-first; fair.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from engine.contract import BadCall, Overloaded
from engine.fair import Fair
from engine.rate import Rate
from engine.sequence import Chunk, Sequence, State
from engine.space import Space
from engine.twins import Twins
from radix import RadixTree


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and the queue may hold."""

    max_batched_tokens: int = 2048
    max_running: int = 256
    max_waiting: int = 1024
    window: int = 8
    """How many of a tenant's first waiting sequences compete by cached prefix."""
    max_overtakes: int = 16

    def __post_init__(self) -> None:
        if self.max_batched_tokens <= self.max_running:
            raise ValueError(
                f"max_batched_tokens ({self.max_batched_tokens}) must be above max_running "
                f"({self.max_running}), or a full batch of decodes leaves nothing for prompts."
            )


class Scheduler:
    """Plans the steps of one model and owns its sequences' pages. One thread calls it.

    plan() → chunks, then advance(chunks) once they are launched; finish() or drop() ends one. With
    two steps in flight, the second is planned before the first is read: what the first drew is
    `ahead` of what is known, and a sequence that ends with it has then been run one token too far.
    """

    def __init__(
        self, tree: RadixTree, limits: Limits, clock: Callable[[], float], fair: Fair | None = None
    ) -> None:
        self._space = Space(tree)
        self._limits = limits
        self._clock = clock
        self._fair = fair or Fair()
        self._queues: dict[str, deque[Sequence]] = {}
        self._running: list[Sequence] = []
        self._blocked = False  # the next in line does not fit, and nothing was freed since
        # How fast requests finish is measured in time with work: idle time says nothing about it.
        self._busy_s = 0.0
        self._seen = clock()
        self._finished = Rate(lambda: self._busy_s)
        self.num_preemptions = 0

    # -- from outside ------------------------------------------------------------------------

    @property
    def running(self) -> list[Sequence]:
        """A copy, in order of admission."""
        return self._running.copy()

    @property
    def waiting(self) -> list[Sequence]:
        """A copy, the least served tenant's first."""
        tenants = sorted(self._queues, key=self._fair.level)
        return [sequence for tenant in tenants for sequence in self._queues[tenant]]

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._queues)

    @property
    def max_tokens(self) -> int:
        """The longest sequence, prompt and answer, that this pool can hold. The last token that a
        sequence generates is never computed on, so it needs no page."""
        return self._space.capacity * self._space.page_size + 1

    def submit(self, siblings: list[Sequence]) -> None:
        """Queue the choices of one call, all or none. Raises BadCall or Overloaded."""
        first = siblings[0]
        if first.max_known > self.max_tokens:
            raise BadCall(
                f"The prompt ({first.num_prompt} tokens) and max_tokens "
                f"({first.max_known - first.num_prompt}) need {first.max_known} tokens of KV "
                f"memory; this model has {self.max_tokens}. Shorten the prompt or ask for fewer "
                "tokens.",
                param="max_tokens",
            )
        self._refuse_if_full(first.tenant, len(siblings))
        if not self.has_work:
            self._seen = self._clock()
        self._fair.begin(first.tenant, first.share)
        self._queues.setdefault(first.tenant, deque()).extend(siblings)
        self._blocked = False

    def finish(self, sequence: Sequence) -> None:
        """A sequence has ended: its full pages stay in the tree for those that come after."""
        self._finished.count()
        self._end(sequence, publish=True)

    def drop(self, sequence: Sequence, *, publish: bool = True) -> None:
        """Give a sequence up, wherever it stands. `publish=False`: its pages may hold anything."""
        self._end(sequence, publish=publish)

    def plan(self) -> list[Chunk]:
        """The next step. Its chunks hold at most max_batched_tokens tokens together."""
        self._pass_time()
        preemptions = self.num_preemptions
        self._grow()
        chunks = [Chunk(s, 1) for s in self._running if s.to_compute == 1]
        budget = self._limits.max_batched_tokens - len(chunks)
        if len(chunks) < len(self._running):
            budget = self._prefill(chunks, budget)
        if self._queues and preemptions == self.num_preemptions:
            self._admit_into(chunks, budget)
        return chunks

    def advance(self, chunks: list[Chunk]) -> None:
        """The step has been launched; call it before appending what was sampled.

        Full pages of prompts go into the tree at once, for those that wait for them.
        """
        self._pass_time()
        drawn = [chunk.sequence for chunk in chunks if chunk.samples]
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.length
            sequence.spent += chunk.length
            if chunk.length > 1:
                self._space.publish(sequence)
        for sequence in drawn:
            sequence.ahead += 1
        self._fair.charge_outputs(sequence.tenant for sequence in drawn)

    def forget(self) -> None:
        """Empty the prefix tree of what nobody reads: a launched step that filled pages failed."""
        self._space.forget()
        self._blocked = False

    def _pass_time(self) -> None:
        now = self._clock()
        self._busy_s += now - self._seen
        self._seen = now

    # -- running sequences -------------------------------------------------------------------

    def _grow(self) -> None:
        """Get a page for each running sequence whose next token has none; preempt if need be."""
        size = self._space.page_size
        short = [s for s in self._running if s.computed + s.to_compute > len(s.pages) * size]
        if not short or self._space.grow(short):
            return
        for sequence in short:
            while sequence.state is State.RUNNING and not self._space.grow([sequence]):
                self._preempt(self._victim())

    def _victim(self) -> Sequence:
        """Of the tenant furthest over its share, the youngest."""
        level = self._fair.level
        return max(self._running, key=lambda s: (level(s.tenant), s.arrival, s.id))

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._space.publish(sequence)
        self._space.release(sequence)
        self._blocked = False
        sequence.state = State.WAITING
        sequence.preempted = True
        self._fair.begin(sequence.tenant, sequence.share)
        self._queues.setdefault(sequence.tenant, deque()).appendleft(sequence)
        self.num_preemptions += 1

    def _prefill(self, chunks: list[Chunk], budget: int) -> int:
        for sequence in self._running:
            if budget == 0:
                break
            if sequence.to_compute > 1:
                length = min(sequence.to_compute, budget)
                chunks.append(Chunk(sequence, length))
                budget -= length
        return budget

    # -- waiting sequences -------------------------------------------------------------------

    def _admit_into(self, chunks: list[Chunk], budget: int) -> None:
        if self._blocked:
            return
        twins = Twins(self._space, [s for s in self._running if s.to_compute > 1])
        while budget > 0 and len(self._running) < self._limits.max_running:
            sequence = self._next(twins)
            if sequence is None:
                return
            if not self._space.take(sequence, headroom=self._headroom(sequence)):
                self._blocked = True
                return
            self._enter(sequence)
            twins.add(sequence)
            length = min(sequence.to_compute, budget)
            chunks.append(Chunk(sequence, length))
            budget -= length

    def _next(self, twins: Twins) -> Sequence | None:
        """The next in line: the least served tenant's longest cached prefix, within bounds."""
        for tenant in sorted(self._queues, key=self._fair.level):
            window = islice(self._queues[tenant], self._limits.window)
            ready = [s for s in window if not s.ahead and not self._has_twin(s, twins)]
            if not ready:
                continue
            if ready[0].preempted or ready[0].overtaken >= self._limits.max_overtakes:
                return ready[0]
            return ready[0] if len(ready) == 1 else max(ready, key=self._space.held)
        return None

    def _has_twin(self, sequence: Sequence, twins: Twins) -> bool:
        """Whether a running prompt will compute at least half of what this one would compute."""
        common = twins.common(sequence)
        if not common:
            return False
        held = self._space.held(sequence)
        return 2 * (common - held) >= sequence.known - held

    def _enter(self, sequence: Sequence) -> None:
        if sequence.admitted is None:  # what a preemption costs is not the tenant's to pay
            sequence.admitted = self._clock()
            sequence.cached = sequence.computed
            self._fair.charge_input(sequence.tenant, sequence.known - sequence.computed)
        for earlier in self._queues[sequence.tenant]:
            if earlier is sequence:
                break
            earlier.overtaken += 1
        self._leave_queue(sequence)
        sequence.state = State.RUNNING
        sequence.preempted = False
        self._running.append(sequence)

    def _headroom(self, sequence: Sequence) -> int:
        """Pages that must stay available beside what is admitted, so that decodes can go on."""
        if not self._running:
            return 0
        for_others = min(len(self._running), self._space.capacity // 16)
        if not sequence.preempted:
            return for_others
        left = sequence.max_known - sequence.known
        return for_others + self._space.pages_for(min(left, 64 + sequence.known // 2))

    def _refuse_if_full(self, tenant: str, count: int) -> None:
        waiting = self.num_waiting
        own = len(self._queues.get(tenant, ())) + count
        part = self._limits.max_waiting // len({*self._queues, tenant})
        if waiting + count <= self._limits.max_waiting or own <= part:
            return
        raise Overloaded(
            f"{waiting} requests are waiting for this model, its limit is "
            f"{self._limits.max_waiting}; try again later.",
            retry_after_s=self._finished.seconds_for(waiting),
        )

    def _end(self, sequence: Sequence, *, publish: bool) -> None:
        if sequence.state is State.WAITING:
            self._leave_queue(sequence)
        elif sequence.state is State.RUNNING:
            self._running.remove(sequence)
            if publish:
                self._space.publish(sequence)
            self._space.release(sequence)
        sequence.state = State.FINISHED
        self._blocked = False

    def _leave_queue(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.tenant]
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.tenant]
            self._fair.end(sequence.tenant)
