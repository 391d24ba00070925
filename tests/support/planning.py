"""A scheduler with everything around it, step by step, and what must hold after each step."""

from __future__ import annotations

import numpy as np

from engine.fair import Fair
from engine.lent import EIGHTH
from engine.scheduler import Limits, Scheduler
from engine.sequence import Chunk, SamplingParams, Sequence, State
from radix import PageAllocator, RadixTree, check
from tests.support.engines import KvPending, KvRunner

PAGE = 4


class House:
    """A scheduler with a tree and a runner that checks KV, and a clock that counts steps. `depth`
    2: a step is launched before the one before it is read."""

    def __init__(self, num_pages: int = 64, depth: int = 1, **limits: int) -> None:
        limits = {"max_batched_tokens": 32, "max_running": 8, **limits}
        self.limits = Limits(**limits)
        self.now = 0.0
        self.tree = RadixTree(PageAllocator(num_pages), PAGE)
        self.fair = Fair()
        self.scheduler = Scheduler(self.tree, self.limits, lambda: self.now, self.fair)
        self.runner = KvRunner(num_pages, PAGE, depth=depth)
        self.flying: list[KvPending] = []
        self.ids = 0
        self.served: dict[str, float] = {}
        self.ends: int | None = None
        """A token that ends an answer."""
        self.alone = self.together = 0
        """Steps that running sequences sat out, and others."""

    def sequence(
        self,
        tokens: list[int] | int,
        answer: int = 4,
        tenant: str = "t",
        share: float = 1.0,
        namespace: str = "n",
        params: SamplingParams | None = None,
    ) -> Sequence:
        self.ids += 1
        if isinstance(tokens, int):
            tokens = [1000 * self.ids + at for at in range(tokens)]  # shared with nobody
        return Sequence(
            id=self.ids,
            namespace=namespace,
            tenant=tenant,
            share=share,
            tokens=np.array(tokens, dtype=np.int32),
            num_prompt=len(tokens),
            max_known=len(tokens) + answer,
            params=params or SamplingParams(),
            arrival=self.now,
            known=len(tokens),
        )

    def submit(self, *args: object, **kwargs: object) -> Sequence:
        sequence = self.sequence(*args, **kwargs)  # type: ignore[arg-type]
        self.scheduler.submit([sequence])
        return sequence

    def step(self) -> list[Chunk]:
        """One step, with everything that must hold after each."""
        self.now += 1.0
        decoding = [s for s in self.scheduler.running if s.to_compute == 1]
        waiting = self.scheduler.num_waiting
        running, preemptions = self.scheduler.running, self.scheduler.num_preemptions
        chunks = self.scheduler.plan()
        assert sum(c.length for c in chunks) <= self.limits.max_batched_tokens
        assert self.scheduler.num_running <= self.limits.max_running
        planned = {c.sequence: c.length for c in chunks}
        assert len(planned) == len(chunks)
        assert all(planned[s] == 1 for s in decoding if s in planned)
        self._check_who_sits_out(set(planned), [s for s in decoding if s.state is State.RUNNING])
        if preemptions < self.scheduler.num_preemptions:
            assert set(self.scheduler.running) <= set(running), "admitted where pages ran out"
        idle = not (waiting or decoding or self.flying)
        assert chunks or idle or self.flying, "work waits and nothing is planned"
        if chunks:
            self.flying.append(self.runner.launch(chunks))
            self.scheduler.advance(chunks)
        if len(self.flying) == self.runner.depth or not chunks:
            self.read()
        self.check()
        return chunks

    def _check_who_sits_out(self, planned: set[Sequence], decoding: list[Sequence]) -> None:
        """Whole tenants, that have a good part of the slots, and seldom."""
        running = self.scheduler.running
        out = {s.tenant for s in decoding if s not in planned}
        for tenant in out:
            own = [s for s in running if s.tenant == tenant]
            assert len(own) > self.limits.max_running // EIGHTH
            assert planned, "nobody was let go before"
            assert not planned.intersection(own), "a part of a tenant sits out"
        self.alone += bool(out)
        self.together += not out
        assert self.alone <= self.together + EIGHTH

    def lack(self) -> None:
        """Memory runs out in the next step: it is not launched, and those to come are smaller."""
        while self.flying:
            self.read()
        self.now += 1.0
        chunks = self.scheduler.plan()
        self.together += 1  # at most; it is not told who sat this one out
        if chunks:
            self.scheduler.shrink(chunks)
            tokens, rows = self.scheduler.most
            assert tokens <= max(1, sum(c.length for c in chunks) // 2)
            assert self.scheduler.num_running <= rows <= max(1, len(chunks) // 2)
        self.check()

    def read(self) -> None:
        """What the oldest step drew."""
        for sampled in self.flying.pop(0).result() if self.flying else ():
            if sampled.sequence.state is not State.FINISHED:  # else it has run a step too far
                self._append(sampled.sequence, sampled.token)

    def _append(self, sequence: Sequence, token: int) -> None:
        sequence.append(token)
        self.served[sequence.tenant] = self.served.get(sequence.tenant, 0.0) + 2.0
        if sequence.known == sequence.num_prompt + 1:
            prompt = sequence.num_prompt - sequence.cached
            self.served[sequence.tenant] += prompt
        if sequence.known == sequence.max_known or token == self.ends:
            self.scheduler.finish(sequence)

    def check(self) -> None:
        check(self.tree)
        own = 0
        for sequence in self.scheduler.running:
            assert sequence.lease is not None
            leased = sequence.lease.num_tokens // PAGE
            assert sequence.pages[:leased] == sequence.lease.pages.tolist()
            assert len(set(sequence.pages)) == len(sequence.pages)
            own += len(sequence.pages) - leased
        assert own == self.tree.pages.num_running, "a page belongs to nobody"
        assert len(self.tree.leases) == self.scheduler.num_running

    def drain(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if not (self.scheduler.has_work or self.flying):
                break
            self.step()
        assert not self.scheduler.has_work, "somebody starves"
        assert self.tree.pages.num_running == 0
        assert not self.tree.leases


def alone(sequence: Sequence) -> list[int]:
    """The same answer from an empty house with room for all of it."""
    house = House(num_pages=32)
    answer = sequence.max_known - sequence.num_prompt
    prompt = sequence.tokens[: sequence.num_prompt].tolist()
    other = house.submit(prompt, answer)
    house.drain()
    return other.tokens[other.num_prompt : other.known].tolist()
