"""Who runs next. Integers only: no tensor, no text, no thread.

Problem. Every step the model can compute so many tokens. Decodes want one each and must not wait;
prompts want thousands; KV pages run out in the middle of answers; tenants compete.

Choice. One token budget a step, dealt in three passes:

    1. every running sequence that lacks one token gets it           (decode: never starved)
    2. running prompts get what is left, oldest first                (chunked prefill)
    3. waiting sequences are admitted into the rest of the budget    (the tenant served least first)

*Admission* takes the pages for all that a sequence has, at once, or does not happen: admitting by
chunk lets prompts starve each other half-way. It also leaves headroom for those that run. Who of a
tenant's is next: waiting.py.

*Preemption* when a decode finds no page: of the tenant furthest over its share, the youngest gives
its pages up. The full ones go into the tree, so coming back is mostly a hit. It waits at the head
of its queue, and comes back only when it can also grow by half, else two long answers would throw
each other out for every page.

*Lack of memory* in a step halves the next ones and sets back whom they have no place for
(ceiling.py).

*Among several tenants* what one has beyond its part is lent to it: slots and pages are taken back
for a tenant that has less, and who crowds the batch lets others' first tokens go before (lent.py).

*Refusal* at submission: what can never fit, and whatever comes when the queue is full.

Rejected. Prefill first (mini-sglang: decodes stall behind prompts). Reserving max_tokens (most
answers end early; the pool stands empty). Skipping a head that does not fit (big prompts starve).

Price. A head that does not fit blocks the queue until pages are freed.
Source: vLLM V1's unified budget; Sarathi-Serve's chunks; fair.py, lent.py, waiting.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.ceiling import Ceiling
from engine.contract import BadCall, Overloaded
from engine.fair import Fair
from engine.lent import Lent
from engine.parts import Parts
from engine.rate import Rate
from engine.sequence import Chunk, Sequence, State
from engine.space import Space
from engine.step import Step
from engine.twins import Twins
from engine.waiting import Waiting
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
        self._parts = Parts(limits.max_running)
        self._ceiling = Ceiling(limits.max_batched_tokens, limits.max_running)
        self._lent = Lent(limits.max_batched_tokens, self._fair, self._parts)
        self._waiting = Waiting(
            self._space,
            most=limits.max_waiting,
            window=limits.window,
            max_overtakes=limits.max_overtakes,
        )
        self._running: list[Sequence] = []
        self._blocked = False  # the next in line does not fit, and nothing was freed since
        # How fast requests finish is measured in time with work: idle time says nothing about it.
        self._busy_s = 0.0
        self._seen = clock()
        self._finished = Rate(lambda: self._busy_s)
        self.num_preemptions = 0
        """Sequences set back because pages ran out, or memory in a step."""
        self.num_displaced = 0
        """Sequences set back because what they held was another tenant's part."""

    # -- from outside ------------------------------------------------------------------------

    @property
    def running(self) -> list[Sequence]:
        """A copy, in order of admission."""
        return self._running.copy()

    @property
    def waiting(self) -> list[Sequence]:
        """A copy, the least served tenant's first."""
        tenants = sorted(self._waiting.tenants, key=self._fair.level)
        return [sequence for tenant in tenants for sequence in self._waiting.of(tenant)]

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

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
        self._parts.come(first.tenant, first.share, len(siblings), self._clock())
        self._waiting.add(siblings, first.tenant)
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
        self._parts.look(self._seen)
        self._ceiling.look(self._seen)
        self._parts.slots = self._ceiling.rows
        preempted = self._grow()
        chunks = [Chunk(s, 1) for s in self._running if s.to_compute == 1]
        budget = self._ceiling.tokens - len(chunks)
        step = Step(chunks, budget, self._lent.prompt_tokens)
        if len(chunks) < len(self._running):
            self._prefill(step)
        if self._waiting and not preempted:
            self._admit_into(step)
        return self._lent.without_the_crowd(step)

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

    def shrink(self, chunks: list[Chunk]) -> bool:
        """Memory ran out in a step of these chunks, and all steps before it have been read: for a
        while the next ones hold at most half as much. Who has no place in them is set back, with
        what it has computed in the tree. False: none could be smaller than this one."""
        tokens = sum(chunk.length for chunk in chunks)
        if not self._ceiling.lower(tokens, len(chunks), self._clock()):
            return False
        while len(self._running) > self._ceiling.rows:
            victim = self._lent.youngest(self._running)
            assert victim is not None, "somebody runs"
            self._set_back(victim)
            self.num_preemptions += 1
        return True

    @property
    def most(self) -> tuple[int, int]:
        """Tokens and sequences that the next step may hold."""
        return self._ceiling.tokens, self._ceiling.rows

    def forget(self) -> None:
        """Empty the prefix tree of what nobody reads: a launched step that filled pages failed."""
        self._space.forget()
        self._blocked = False

    def _pass_time(self) -> None:
        now = self._clock()
        self._busy_s += now - self._seen
        self._seen = now

    # -- running sequences -------------------------------------------------------------------

    def _grow(self) -> bool:
        """Get a page for each running sequence whose next token has none. True: pages ran out, and
        somebody was preempted."""
        size = self._space.page_size
        short = [s for s in self._running if s.computed + s.to_compute > len(s.pages) * size]
        if not short or self._space.grow(short):
            return False
        before = self.num_preemptions
        for sequence in short:
            while sequence.state is State.RUNNING and not self._space.grow([sequence]):
                victim = self._lent.youngest(self._running)
                assert victim is not None, "whoever lacks a page runs"
                self._set_back(victim)
                self.num_preemptions += 1
        return self.num_preemptions > before

    def _set_back(self, sequence: Sequence) -> None:
        """From the batch to the head of its queue; what it has computed stays in the tree."""
        self._stop_running(sequence)
        self._space.publish(sequence)
        self._space.release(sequence)
        self._blocked = False
        sequence.state = State.WAITING
        sequence.preempted = True
        self._fair.begin(sequence.tenant, sequence.share)
        self._waiting.put_back(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._parts.end(sequence.tenant)

    def _prefill(self, step: Step) -> None:
        for sequence in self._running:
            if step.budget == 0:
                break
            if sequence.to_compute > 1:
                step.deal(sequence, crowds=self._parts.crowds(sequence.tenant))

    # -- waiting sequences -------------------------------------------------------------------

    def _admit_into(self, step: Step) -> None:
        if self._blocked or (self._is_full and not self._parts.divided):
            return
        twins = Twins(self._space, [s for s in self._running if s.to_compute > 1])
        while step.budget > 0:
            sequence = self._next(twins, step)
            if sequence is None or not self._find_room(sequence, step):
                break
            level = self._fair.level(sequence.tenant)
            self._enter(sequence)
            twins.add(sequence)
            step.fresh.add(sequence)
            draws = step.deal(sequence, crowds=self._parts.crowds(sequence.tenant))
            if draws and sequence.known == sequence.num_prompt:
                step.firsts.setdefault(sequence.tenant, level)
        if step.gone:
            step.chunks = [c for c in step.chunks if c.sequence not in step.gone]

    @property
    def _is_full(self) -> bool:
        return len(self._running) >= self._ceiling.rows

    def _next(self, twins: Twins, step: Step) -> Sequence | None:
        """The next in line: of the tenant whose turn it is among those that may come in."""
        for tenant in sorted(self._waiting.tenants, key=self._lent.turn):
            if self._is_full and self._lent.slot(tenant, self._running, step.fresh) is None:
                continue
            if step.lent == 0 and self._parts.crowds(tenant, 1):
                continue
            sequence = self._waiting.next_of(tenant, twins)
            if sequence is not None and sequence not in step.gone:
                return sequence
        return None

    def _find_room(self, sequence: Sequence, step: Step) -> bool:
        """A slot, and pages: free ones, or lent ones that are taken back."""
        need, whole = self._space.pages_for(sequence.known), self._space.capacity
        while not self._space.take(sequence, headroom=self._headroom(sequence)):
            debtor = self._lent.pages(sequence.tenant, need, whole, self._running, step.fresh)
            if debtor is None:
                self._blocked = True
                return False
            self._displace(debtor, step)
        if self._is_full:
            debtor = self._lent.slot(sequence.tenant, self._running, step.fresh)
            assert debtor is not None, "or it would not be next"
            self._displace(debtor, step)
        return True

    def _displace(self, debtor: Sequence, step: Step) -> None:
        self._set_back(debtor)
        step.gone.add(debtor)
        self.num_displaced += 1

    def _enter(self, sequence: Sequence) -> None:
        if sequence.admitted is None:  # what a preemption costs is not the tenant's to pay
            sequence.admitted = self._clock()
            sequence.cached = sequence.computed
            self._fair.charge_input(sequence.tenant, sequence.known - sequence.computed)
        self._waiting.overtake(sequence)
        self._leave_queue(sequence)
        sequence.state = State.RUNNING
        sequence.preempted = False
        self._running.append(sequence)
        self._parts.begin(sequence.tenant)

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
        if self._waiting.has_room(tenant, count):
            return
        waiting = self.num_waiting
        raise Overloaded(
            f"{waiting} requests are waiting for this model, its limit is "
            f"{self._limits.max_waiting}; try again later.",
            retry_after_s=self._finished.seconds_for(waiting),
        )

    def _end(self, sequence: Sequence, *, publish: bool) -> None:
        if sequence.state is State.WAITING:
            self._leave_queue(sequence)
        elif sequence.state is State.RUNNING:
            self._stop_running(sequence)
            if publish:
                self._space.publish(sequence)
            self._space.release(sequence)
        if sequence.state is not State.FINISHED:
            self._parts.go(sequence.tenant, self._seen)
        sequence.state = State.FINISHED
        self._blocked = False

    def _leave_queue(self, sequence: Sequence) -> None:
        if self._waiting.remove(sequence):
            self._fair.end(sequence.tenant)
