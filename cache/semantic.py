"""The semantic cache: a question that means the same gets the same answer, within a promise.

    asked ─► may it be cached? ─► namespace (hard) ─► embed ─► nearest answers ─► the policy
                                                                    serve ◄──┘ │ └──► forward
                                                                          explore
    forward, explore: the model answers, and what it says labels the nearest answers

Partition hard, compare soft: the namespace is the exact key (cache/key.py) of the call without its
last user text, so scope, system prompt, tools, parameters, weights and policy must be *equal*; only
that one text is compared by meaning. Nothing that a user writes reaches another namespace.

Whether a near answer is near enough is decided by cache/verify_budget.py within `max_error`; this
layer finds the neighbours, records the model's answer, compares it with the cached ones after the
request is over (cache/agree.py) and tells the policy. A neighbour that is not served is handed on
as a draft.

Not cached, and said so in Cache-Status: calls with tools, images, several turns (unless allowed),
randomness asked for by name, n > 1, texts over the embedder's window, and questions about the
present moment ("weather", "today"), whose answer is stale before it is stored.

Price: one embedding (1 to 3 ms, on another thread) and 0.3 ms for each request that misses the
exact cache; afterwards, off the path, two embeddings of answers where they differ.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, TypeAlias

from cache.agree import Judge, text_of
from cache.archive import Erasure
from cache.embed import Busy, Embedder, EmbedError, Vector
from cache.entry import Origin, Seen, SpaceState
from cache.hindsight import Given, Hearing, Hindsight
from cache.keeper import Keeper
from cache.labelling import Labelling
from cache.memory import MEMORY_BYTES, Memory
from cache.namespace import Terms, last_text, namespace_of, why_not
from cache.quota import Bounds
from cache.record import Recorder
from cache.replay import replay
from cache.space import Space
from cache.spaces import PolicyOf, Spaces
from cache.teach import Asked, Teacher
from cache.verify import Policy, Verdict
from cache.verify_budget import MIN_EVIDENCE, Budgeted
from cache.verify_budget import Terms as Promise
from cache.verify_facts import read
from cache.verify_model import shared_prior
from engine.contract import (
    Answer,
    Answerer,
    CacheStatus,
    Call,
    Decision,
    Draft,
    End,
    Event,
    Start,
    Trail,
)

DRAFT_FROM: Final = 0.7
"""Cosine from which a near-miss may help speculative decoding."""

MATURE: Final = 500
"""Labels from which a namespace has something to tell to new ones of its scope."""


TermsOf: TypeAlias = Callable[[Call, Trail], Terms]
"""Of the tenant, whatever the request asks for beyond them."""
OwnerOf: TypeAlias = Callable[[Call, Trail], str]
"""The end user where one is known, else the tenant."""


def budgeted(
    terms: Terms, siblings: Sequence[Policy] = (), *, min_evidence: int = MIN_EVIDENCE
) -> Budgeted:
    """The promised policy, which begins with what its siblings have learnt; `min_evidence` in
    labels before the first hit."""
    mature = [p for p in siblings if isinstance(p, Budgeted) and p.labels >= MATURE]
    prior = shared_prior([policy.odds.weights for policy in mature])
    return Budgeted(Promise(terms.max_error, min_evidence=min_evidence), random.Random(), prior)


# --------------------------------------------------------------------------- the layer


class Semantic:
    """Answers by meaning, or asks the inner answerer. Owns the namespaces and the labelling, and
    the archive if there is one."""

    def __init__(
        self,
        inner: Answerer,
        embedder: Embedder,
        *,
        terms_of: TermsOf,
        owner_of: OwnerOf = lambda _call, trail: trail.tenant,
        policy_of: PolicyOf = budgeted,
        judge: Judge | None = None,
        keeper: Keeper | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008  frozen
        max_spaces: int = 5000,
        memory_bytes: int = MEMORY_BYTES,
        max_labelling: int = 64,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._inner = inner
        self._embedder = embedder
        self._terms_of = terms_of
        self._owner_of = owner_of
        self._hindsight = Hindsight(embedder.embed)
        self._clock = clock
        self._spaces = Spaces(
            policy_of=policy_of,
            dimensions=lambda: embedder.dimensions,
            bounds=bounds,
            max_spaces=max_spaces,
            keeper=keeper,
            clock=clock,
            memory=Memory(memory_bytes),
            on_erase=self._forget_texts,
        )
        self._labelling = Labelling(
            Teacher(embedder.embed, judge), self._spaces, self._hindsight, keeper, max_labelling
        )

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        started = time.perf_counter()
        asked = await self._look(call, trail)
        trail.span("semantic", started)
        if asked is not None and asked.verdict is not None and asked.verdict.action == "serve":
            for event in self._serve(asked, call, trail):
                yield event
            return
        recorder, taken = Recorder(call), False
        try:
            async with aclosing(self._inner(call, trail)) as answer:
                async for event in answer:
                    if asked is not None:
                        recorder.see(event)
                        if isinstance(event, End):  # who listens may leave now
                            taken = self._take(asked, call, trail, recorder)
                    yield event
        finally:
            if asked is not None and not taken:
                asked.close()

    # ------------------------------------------------------------------ before the answer

    async def _look(self, call: Call, trail: Trail) -> Asked | None:
        """What the cache knows; None where this request is none of its business."""
        terms = self._terms_of(call, trail)
        if terms.max_error <= 0:
            return None
        refusal = self._refusal(call, trail, terms)
        if refusal is not None:
            trail.cache.append(refusal)
            return None
        question = last_text(call)
        assert question is not None
        # The namespace keeps its tenant's promise of now, whatever this request asks for beyond it.
        namespace = namespace_of(call, self._embedder.fingerprint)
        owner = self._owner_of(call, trail)
        space = self._spaces.open(Origin(namespace, call.scope, call.model), terms, owner)
        if space.rest.passes():
            trail.cache.append(_bypass("resting: the labels allow no hit here"))
            return None
        started = time.perf_counter()
        try:
            vector = await self._embedder.embed(question, call.scope)
        except EmbedError as error:
            busy = isinstance(error, Busy)
            trail.cache.append(_bypass("the embedder is busy" if busy else str(error)))
            return None
        trail.span("embed", started)
        return self._judge(space, question, vector, call, terms, trail)

    def _refusal(self, call: Call, trail: Trail, terms: Terms) -> CacheStatus | None:
        """Why this request is left alone, before anything is spent on it."""
        if trail.directives.no_store:
            return CacheStatus("semantic", forward="request")
        reason = why_not(call, terms) or self.problem
        return _bypass(reason) if reason else None

    @property
    def problem(self) -> str:
        """Why nothing is given or learnt now; empty where it is."""
        return self._embedder.problem or self._spaces.problem

    def _judge(  # noqa: PLR0917
        self, space: Space, question: str, vector: Vector, call: Call, terms: Terms, trail: Trail
    ) -> Asked:
        facts, now = read(question), self._clock()
        seen = space.look(facts, vector, now, terms.ttl_s)
        asked = Asked(space, question, facts, vector, seen, self._owner_of(call, trail))
        if asked.owner != trail.tenant:
            asked.doubt = self._hindsight.doubt(asked, now)
        asked.verdict = self._decide(asked, terms, trail)
        space.rest.note(allowed=asked.verdict is not None and asked.verdict.action != "forward")
        return asked

    def _decide(self, asked: Asked, terms: Terms, trail: Trail) -> Verdict | None:
        space, seen = asked.space, asked.seen
        if seen is None:
            space.policy.skip()
            trail.cache.append(CacheStatus("semantic", forward="miss"))
            return None
        wanted = trail.directives
        group = space.group(seen.entry.group)
        assert group is not None
        age_s = max(0.0, self._clock() - group.recording.stored_at)
        refused = wanted.no_cache or (wanted.max_age_s is not None and age_s > wanted.max_age_s)
        max_error = terms.max_error if wanted.max_error is None else wanted.max_error
        if refused or asked.doubt is not None:
            max_error = 0.0
        verdict = _verdict(space.policy, seen, max_error, terms)
        trail.decisions.append(Decision("semantic", verdict.action, verdict.reason))
        if verdict.action == "serve":
            return verdict
        if seen.sighting.similarity >= DRAFT_FROM:
            trail.drafts.append(Draft(text_of(group.recording), "semantic"))
        why = "request" if refused else "miss"
        trail.cache.append(CacheStatus("semantic", forward=why, detail=_worth(verdict)))
        return verdict

    def _serve(self, asked: Asked, call: Call, trail: Trail) -> Iterator[Event]:
        seen, verdict = asked.seen, asked.verdict
        assert seen is not None
        assert verdict is not None
        group = asked.space.group(seen.entry.group)
        assert group is not None
        recording, now = group.recording, self._clock()
        trail.age_s = max(0.0, now - recording.stored_at)
        ttl_s = min(recording.ttl_s, self._terms_of(call, trail).ttl_s) - trail.age_s
        trail.cache.append(CacheStatus("semantic", hit=True, ttl_s=ttl_s, detail=_worth(verdict)))
        asked.space.use(group, asked.owner)
        self._remember(asked, trail)
        start, *rest = replay(recording, trail.id)
        assert isinstance(start, Start)
        yield replace(start, origin="semantic")
        yield from rest

    def _remember(self, asked: Asked, trail: Trail) -> None:
        """A hit that is being served."""
        seen, verdict, space = asked.seen, asked.verdict, asked.space
        assert seen is not None
        assert verdict is not None
        decision = (seen.sighting, verdict)
        given = Given(trail.tenant, asked.owner, space, seen.entry.group, decision)
        self._hindsight.remember(trail.id, given)
        if asked.owner != trail.tenant:
            self._hindsight.served(asked, trail.tenant, self._clock())

    # ------------------------------------------------------------------ after the answer

    def _take(self, asked: Asked, call: Call, trail: Trail, recorder: Recorder) -> bool:
        """Begin to compare and keep what the model said, if it is worth that; the request does not
        wait for it."""
        terms = self._terms_of(call, trail)
        recording = recorder.recording(stored_at=self._clock(), ttl_s=terms.ttl_s, tags=trail.tags)
        if recording is not None:
            self._labelling.begin(asked, recording, trail)
        return recording is not None

    async def settle(self) -> None:
        """Wait until everything answered so far is compared and kept, and the archive has it for
        good: what was learnt then survives the death of the process."""
        await self._labelling.settle()
        await self._spaces.tell()
        await self._spaces.flush()

    # ------------------------------------------------------------------ people

    async def feedback(
        self, answer_id: str, score: float, *, tenant: str, scope: str, correct: str | None = None
    ) -> Hearing:
        """What someone says of an answer given to `tenant` in `scope` (cache/hindsight.py)."""
        hearing = await self._hindsight.feedback(
            answer_id, score, tenant=tenant, scope=scope, correct=correct
        )
        await self._spaces.tell()
        return hearing

    async def purge(
        self,
        *,
        scope: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        owner: str | None = None,
        answer: str | None = None,
    ) -> int:
        """Forget what matches all that is given, here and wherever the archive is shared; returns
        the number of questions. `answer` is the id under which somebody got it, now or then.
        Raises StoreFault where the archive cannot be told."""
        given = self._hindsight.find(answer) if answer is not None else None
        if given is not None:
            answer = given.space.answer_of(given.group) or answer
        return await self._spaces.erase(Erasure(scope, model, tag, owner, answer))

    def _forget_texts(self, erasure: Erasure) -> None:
        """What is remembered for a while of questions that nobody keeps."""
        self._hindsight.forget()
        self._embedder.forget(erasure.scope)

    # ------------------------------------------------------------------ across restarts

    async def restore(self, terms_for: Callable[[str], Terms]) -> int:
        """Open the archive and rebuild from it; `terms_for` gives a scope's terms. Returns the
        number of questions. Raises StoreFault; until it has returned, every request is passed."""
        return await self._spaces.restore(terms_for)

    async def close(self) -> None:
        """Learn what there is to learn, and let go of the archive."""
        await self.settle()
        await self._spaces.close()

    def state(self) -> list[SpaceState]:
        """Every namespace, the most recently used first."""
        return self._spaces.state()


def _bypass(reason: str) -> CacheStatus:
    return CacheStatus("semantic", forward="bypass", detail=reason)


def _worth(verdict: Verdict) -> str:
    return "" if math.isnan(verdict.told) else f"p={verdict.told:.3f}"


def _verdict(policy: Policy, seen: Seen, max_error: float, terms: Terms) -> Verdict:
    """`max_error` may tighten the tenant's, which is in `terms`."""
    if isinstance(policy, Budgeted):
        return policy.decide(seen.sighting, min(max_error, terms.max_error))
    if max_error < terms.max_error:
        return Verdict("forward", math.nan, 1.0, "this policy cannot promise that little")
    return policy.decide(seen.sighting)
