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

import asyncio
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from cache.agree import Judge, text_of
from cache.archive import Kept
from cache.embed import Busy, Embedder, EmbedError
from cache.keeper import Keeper, Place
from cache.namespace import Terms, last_text, namespace_of, why_not
from cache.record import Recorder
from cache.replay import Recording, replay
from cache.space import Bounds, Seen, Space, SpaceState
from cache.teach import Asked, Teacher
from cache.verify import Policy, Verdict
from cache.verify_budget import Budgeted
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
    Event,
    Start,
    Trail,
)

DRAFT_FROM: Final = 0.7
"""Cosine from which a near-miss may help speculative decoding."""

MAX_SIBLINGS: Final = 16

MATURE: Final = 500
"""Labels from which a namespace has something to tell to new ones of its scope."""

REMEMBERED: Final = 10_000
"""Served hits that feedback can still reach."""


TermsOf: TypeAlias = Callable[[Call, Trail], Terms]
OwnerOf: TypeAlias = Callable[[Call, Trail], str]
PolicyOf: TypeAlias = Callable[[Terms, Sequence[Policy]], Policy]
"""(terms, policies of the scope's other namespaces) -> the policy of a new namespace."""


def budgeted(terms: Terms, siblings: Sequence[Policy] = ()) -> Budgeted:
    """The promised policy, which begins with what its siblings have learnt."""
    mature = [p for p in siblings if isinstance(p, Budgeted) and p.labels >= MATURE]
    prior = shared_prior([policy.odds.weights for policy in mature])
    return Budgeted(Promise(terms.max_error), random.Random(), prior)


@dataclass(frozen=True, slots=True)
class Given:
    """A served hit, so that feedback finds what it was about."""

    namespace: bytes
    seen: Seen
    verdict: Verdict


# --------------------------------------------------------------------------- the layer


class Semantic:
    """Answers by meaning, or asks the inner answerer. Owns the namespaces and the labelling."""

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
        max_spaces: int = 2000,
        max_labelling: int = 64,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._inner = inner
        self._embedder = embedder
        self._terms_of = terms_of
        self._owner_of = owner_of
        self._policy_of = policy_of
        self._teacher = Teacher(embedder.embed, judge)
        self._keeper = keeper
        self._bounds = bounds
        self._max_spaces = max_spaces
        self._max_labelling = max_labelling
        self._clock = clock
        self._spaces: OrderedDict[bytes, Space] = OrderedDict()
        self._origins: dict[bytes, tuple[str, str]] = {}
        self._given: OrderedDict[str, tuple[str, Given]] = OrderedDict()
        self._labelling: set[asyncio.Task[None]] = set()
        self.unlabelled = 0
        """Answers not compared because too many comparisons were under way."""

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        started = time.perf_counter()
        asked = await self._look(call, trail)
        trail.span("semantic", started)
        if asked is not None and asked.verdict is not None and asked.verdict.action == "serve":
            for event in self._serve(asked, trail):
                yield event
            return
        recorder = Recorder(call)
        async with aclosing(self._inner(call, trail)) as answer:
            async for event in answer:
                if asked is not None:
                    recorder.see(event)
                yield event
        if asked is not None:
            self._take(asked, call, trail, recorder)

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
        namespace = namespace_of(call)
        # The namespace keeps its tenant's promise, whatever this request asks for beyond it.
        space = self._open(namespace, (call.scope, call.model), terms)
        if space.rests():
            _pass(trail, "bypass", "resting: the labels allow no hit here")
            return None
        started = time.perf_counter()
        try:
            vector = await self._embedder.embed(question, call.scope)
        except EmbedError as error:
            queue = "the embedder is busy" if isinstance(error, Busy) else str(error)
            _pass(trail, "bypass", queue)
            return None
        trail.span("embed", started)
        facts = read(question)
        seen = space.look(facts, vector, self._clock())
        verdict = self._decide(space, seen, terms, trail)
        space.note(allowed=verdict is not None and verdict.action != "forward")
        return Asked(namespace, space, question, facts, vector, seen, verdict)

    def _refusal(self, call: Call, trail: Trail, terms: Terms) -> CacheStatus | None:
        """Why this request is left alone, before anything is spent on it."""
        if trail.directives.no_store:
            return CacheStatus("semantic", forward="request")
        reason = why_not(call, terms) or self._embedder.problem
        return CacheStatus("semantic", forward="bypass", detail=reason) if reason else None

    def _open(self, namespace: bytes, origin: tuple[str, str], terms: Terms) -> Space:
        """The space of a namespace, made now if need be; `origin` is its scope and model."""
        space = self._spaces.get(namespace)
        if space is not None:
            self._spaces.move_to_end(namespace)
            return space
        siblings = [
            sibling.policy
            for name, sibling in self._spaces.items()
            if self._origins[name][0] == origin[0]
        ]
        policy = self._policy_of(terms, siblings[-MAX_SIBLINGS:])
        space = Space(
            policy, self._embedder.dimensions, self._bounds, reports=self._keeper is not None
        )
        self._spaces[namespace] = space
        self._origins[namespace] = origin
        if len(self._spaces) > self._max_spaces:
            forgotten, _ = self._spaces.popitem(last=False)
            del self._origins[forgotten]
        return space

    def _decide(
        self, space: Space, seen: Seen | None, terms: Terms, trail: Trail
    ) -> Verdict | None:
        if seen is None:
            space.policy.skip()
            trail.cache.append(CacheStatus("semantic", forward="miss"))
            return None
        asked = trail.directives
        group = space.group(seen.entry.group)
        assert group is not None
        age_s = max(0.0, self._clock() - group.recording.stored_at)
        refused = asked.no_cache or (asked.max_age_s is not None and age_s > asked.max_age_s)
        max_error = terms.max_error if asked.max_error is None else asked.max_error
        verdict = _verdict(space.policy, seen, 0.0 if refused else max_error, terms)
        trail.decisions.append(Decision("semantic", verdict.action, verdict.reason))
        if verdict.action == "serve":
            return verdict
        if seen.sighting.similarity >= DRAFT_FROM:
            trail.drafts.append(Draft(text_of(group.recording), "semantic"))
        why = "request" if refused else "miss"
        trail.cache.append(CacheStatus("semantic", forward=why, detail=_worth(verdict)))
        return verdict

    def _serve(self, asked: Asked, trail: Trail) -> Iterator[Event]:
        seen, verdict = asked.seen, asked.verdict
        assert seen is not None
        assert verdict is not None
        group = asked.space.group(seen.entry.group)
        assert group is not None
        recording, now = group.recording, self._clock()
        trail.age_s = max(0.0, now - recording.stored_at)
        ttl_s = recording.expires_at - now
        trail.cache.append(CacheStatus("semantic", hit=True, ttl_s=ttl_s, detail=_worth(verdict)))
        self._given[trail.id] = (trail.tenant, Given(asked.namespace, seen, verdict))
        if len(self._given) > REMEMBERED:
            self._given.popitem(last=False)
        start, *rest = replay(recording, trail.id)
        assert isinstance(start, Start)
        yield replace(start, origin="semantic")
        yield from rest

    # ------------------------------------------------------------------ after the answer

    def _take(self, asked: Asked, call: Call, trail: Trail, recorder: Recorder) -> None:
        """Begin to compare and keep what the model said; the request does not wait for it."""
        terms = self._terms_of(call, trail)
        recording = recorder.recording(stored_at=self._clock(), ttl_s=terms.ttl_s, tags=trail.tags)
        if recording is None:
            return
        if len(self._labelling) >= self._max_labelling:
            self.unlabelled += 1
            return
        task = asyncio.create_task(self._learn(asked, recording, self._owner_of(call, trail)))
        self._labelling.add(task)
        task.add_done_callback(self._labelling.discard)

    async def _learn(self, asked: Asked, recording: Recording, owner: str) -> None:
        key = await self._teacher.learn(asked, recording, owner)
        if key is not None and self._keeper is not None and asked.namespace in self._origins:
            at = Place(asked.namespace, *self._origins[asked.namespace], asked.space)
            await self._keeper.keep(at, key, asked.vector, recording)

    async def settle(self) -> None:
        """Wait until everything answered so far is compared and kept."""
        while self._labelling:
            await asyncio.gather(*self._labelling)

    # ------------------------------------------------------------------ people

    def feedback(self, answer_id: str, score: float, *, tenant: str) -> bool:
        """What someone says of a hit served to `tenant`; whether it is remembered. Below .5 is a
        wrong hit, whose answer is dropped when nothing but complaints is known of it.

        Complaints count as labels, praise does not: people complain of what is wrong, and are
        silent otherwise, so that counting both as a sample would be a bias, and this way the bias
        is on the safe side."""
        remembered = self._given.get(answer_id)
        if remembered is None or remembered[0] != tenant:
            return False
        given = self._given.pop(answer_id)[1]
        space = self._spaces.get(given.namespace)
        if space is None:
            return False
        right = score >= 0.5
        number = given.seen.entry.group
        space.check(number, right=right)
        if right:
            return True
        space.sources["feedback"] += 1
        space.policy.learn(given.seen.sighting, replace(given.verdict, chance=1.0), right=False)
        group = space.group(number)
        if group is not None and group.record.wrong > 1 + group.record.right:
            space.drop_group(number)
        return True

    async def purge(
        self,
        *,
        scope: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        owner: str | None = None,
    ) -> int:
        """Drop what matches all that is given; returns the number of questions dropped."""
        dropped = 0
        for namespace, space in self._spaces.items():
            its_scope, its_model = self._origins[namespace]
            if scope in (None, its_scope) and model in (None, its_model):
                dropped += space.purge(tag=tag, owner=owner)
                if self._keeper is not None:
                    await self._keeper.sweep(Place(namespace, its_scope, its_model, space))
        return dropped

    # ------------------------------------------------------------------ across restarts

    async def restore(self, terms_for: Callable[[str], Terms]) -> int:
        """Rebuild from the archive; `terms_for` gives a scope's terms. Returns the number of
        questions. What the archive raises goes to the caller: it is asked once, at start."""
        if self._keeper is None:
            return 0
        async for kept in self._keeper.load():
            if isinstance(kept, Kept):
                origin = (kept.scope, kept.model)
                self._open(kept.namespace, origin, terms_for(kept.scope)).put_back(kept)
                continue
            space = self._spaces.get(kept.namespace)
            if space is not None and isinstance(space.policy, Budgeted):
                space.policy.restore(kept.blob)
        return sum(len(space) for space in self._spaces.values())

    def state(self) -> list[SpaceState]:
        """Every namespace, the most recently used first."""
        return [
            space.state(namespace.hex()[:16], *self._origins[namespace])
            for namespace, space in reversed(self._spaces.items())
        ]


def _pass(trail: Trail, forward: str, detail: str) -> None:
    trail.cache.append(CacheStatus("semantic", forward=forward, detail=detail))


def _worth(verdict: Verdict) -> str:
    return "" if math.isnan(verdict.p_right) else f"p={verdict.p_right:.3f}"


def _verdict(policy: Policy, seen: Seen, max_error: float, terms: Terms) -> Verdict:
    """`max_error` may tighten the tenant's, which is in `terms`."""
    if isinstance(policy, Budgeted):
        return policy.decide(seen.sighting, min(max_error, terms.max_error))
    if max_error < terms.max_error:
        return Verdict("forward", math.nan, 1.0, "this policy cannot promise that little")
    return policy.decide(seen.sighting)
