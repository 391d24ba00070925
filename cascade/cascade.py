"""Which model answers: the innermost layer before the models themselves.

A call names a model, or `auto`. A named model is asked, and nothing is added. For `auto`:

    1  candidates      who can do what is asked at all (ability.py)
    2  standing        a turn with tool results stays with the model that called the tools
    3  before token 1  the policy's route decides on the request: small, large, or try small
    4  hold            small's first tokens are held back, judged, and
    5  wait            where nobody reads along, held until the answer has ended, judged again, and
    6  commit          they go out and small goes on; from here the stream never changes its mind
    7  or escalate     small is closed, its text is the large model's draft (Trail.drafts)

The commit point is `Start`: it leaves here with the first token of the model that answers. Every
decision is put on the trail with its reason. Who may answer the same call depends on the call alone
(and on what the policy counts), never on who asks: the policy is part of the Call. Whether it is
streamed is not: it says how long small's answer may be waited for before it is judged, and both
ways keep one promise at once (routes/learned.py). So JSON and SSE can share one generation, and a
stored answer, whichever way it was asked for first.

A model that fails before its first token is not the caller's problem while another can answer:
small failing means large. Large failing is an error, because the promise is about large.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from cascade.ability import LONG, Abilities, lacking
from cascade.conversation import Conversations, Standing, Turn
from cascade.features import before, question
from cascade.hold import Hold
from cascade.judge import holds_whole, judge
from cascade.price import ExpectedLength, Price, estimate_held_tokens, estimate_prompt_tokens
from cascade.routes.base import Candidate, Choice, Question, Route
from engine.contract import (
    Answer,
    Answerer,
    AnswerError,
    BadCall,
    Call,
    DeadlineExceeded,
    Decision,
    Delta,
    Draft,
    End,
    Event,
    Trail,
    UnknownModel,
    Usage,
)

AUTO = "auto"
ABANDONED = "abandoned for the large model's answer"

Embed = Callable[[Call], Awaitable[NDArray[Any] | None]]
"""The call's vector, as the semantic cache made it; None where it has none."""
Held = Callable[[str, Call], int]
"""(model, call) → prompt tokens that the model's prefix tree already holds."""


def _nothing_held(model: str, call: Call) -> int:  # noqa: ARG001
    return 0


@dataclass(frozen=True, slots=True)
class Team:
    """The two models of the cascade, and what is known of them."""

    small: str
    large: str
    prices: Mapping[str, Price] = field(default_factory=dict)
    abilities: Mapping[str, Abilities] = field(default_factory=dict)
    held: Held = _nothing_held
    embed: Embed | None = None


class Cascade:
    """Hands each call to the answerer of its model, or finds out which that is.

    `routes` maps a call's `policy` to its route and is asked for each call, so that its owner may
    add to it; any other policy gets `route`. State: the conversations'
    models and the expected answer lengths, both of this event loop.
    """

    def __init__(
        self,
        models: Mapping[str, Answerer],
        route: Route,
        team: Team | None = None,
        routes: Mapping[str, Route] | None = None,
    ) -> None:
        self._models = dict(models)
        self._route = route
        self._routes = routes or {}
        self._team = team
        self._conversations = Conversations()
        self._lengths = ExpectedLength()

    def __call__(self, call: Call, trail: Trail) -> Answer:
        """A named model's own answer, not wrapped: a layer that adds nothing costs nothing.

        Raises UnknownModel for a name that no model has.
        """
        if call.model != AUTO:
            return self._answerer(call.model)(call, trail)
        route = self._routes.get(call.policy, self._route)
        if self._team is None:
            return self._alone(call, trail, route)
        return self._cascade(call, trail, route, self._team)

    def _alone(self, call: Call, trail: Trail, route: Route) -> Answer:
        """Without a team there is nothing to weigh: the route is a fixed one."""
        nobody = Candidate("", 0)
        asked = Question(call, nobody, nobody)
        choice = route.before(asked)
        _decide(trail, choice, asked)
        return self._answerer(choice.model)(replace(call, model=choice.model), trail)

    async def _cascade(self, call: Call, trail: Trail, route: Route, team: Team) -> Answer:
        started = time.perf_counter()
        asked = await self._question(call, trail, route, team)
        choice = self._forced(asked, team) or route.before(asked)
        _decide(trail, choice, asked)
        trail.span("route", started)
        if choice.judged:
            answer = self._try_small(asked, trail, route, team)
        else:
            answer = self._commit(call, trail, choice.model)
        async with aclosing(answer):
            async for event in answer:
                yield event

    async def _question(self, call: Call, trail: Trail, route: Route, team: Team) -> Question:
        """What the route is asked, with the blocks it needs."""
        inputs: dict[str, NDArray[Any]] = {}
        if "before" in route.needs:
            inputs["before"] = before(call)
        if "embedding" in route.needs and team.embed is not None:
            vector = await team.embed(call)
            if vector is not None:
                inputs["embedding"] = vector
        standing = self._conversations.standing(call)
        small, large = (
            self._candidate(model, call, team, standing) for model in (team.small, team.large)
        )
        whole = trail.whole and route.whole_tokens > 0
        return Question(call, small, large, standing, inputs, whole)

    def _candidate(self, model: str, call: Call, team: Team, standing: Standing) -> Candidate:
        """Whoever answered the last turn holds its prefix: changing the model loses that."""
        price = team.prices.get(model, Price())
        prompt, held = estimate_prompt_tokens(call), team.held(model, call)
        if standing.model == model:
            held = max(held, estimate_held_tokens(call))
        cost = price.of(prompt, self._lengths.expect(model, call) * call.n, min(prompt, held))
        return Candidate(model, cost)

    def _forced(self, asked: Question, team: Team) -> Choice | None:
        """What leaves the route no choice: abilities, and a turn that is under way."""
        faults = {
            model: lacking(asked.call, team.abilities.get(model, Abilities()))
            for model in (team.small, team.large)
        }
        if set(faults.values()) == {LONG}:
            return Choice(team.large, "too long for either: the model says by how much")
        if all(faults.values()):
            told = ", ".join(f"{model} cannot take {fault}" for model, fault in faults.items())
            raise BadCall(f"No model of `auto` can answer this: {told}. Name another model.")
        for model, other in ((team.small, team.large), (team.large, team.small)):
            if faults[other]:
                return Choice(model, f"{other} cannot take {faults[other]}")
        if asked.standing.turn is Turn.TOOL:
            return _tool_turn(asked.standing, team)
        return None

    async def _commit(self, call: Call, trail: Trail, model: str) -> Answer:
        """The model's own answer, and a note of who gave it."""
        inner = self._answerer(model)(replace(call, model=model), trail)
        async with aclosing(inner):
            async for event in inner:
                self._note(event, call, model)
                yield event

    async def _try_small(self, asked: Question, trail: Trail, route: Route, team: Team) -> Answer:
        call, model, wasted = asked.call, asked.small.model, len(trail.wasted)
        hold = Hold(call.n, None if holds_whole(call) else route.hold_tokens)
        tells = team.abilities.get(model, Abilities()).logprobs
        small = self._answerer(model)(
            replace(call, model=model, logprobs=call.logprobs or tells), trail
        )
        async with aclosing(small):
            choice = await self._judge(asked, small, hold, trail, route)
            _decide(trail, choice, asked)
            if choice.model == model:
                kept = _resume(hold, small, model, trail)
                async with aclosing(kept):
                    async for event in kept:
                        self._note(event, call, model)
                        yield event if call.logprobs else _bare(event)
                return
        if hold.text:
            trail.drafts.append(Draft(hold.text, source=model))
        thrown = _throw_away(hold, model, trail, wasted)
        large = self._commit(call, trail, choice.model)
        async with aclosing(large):
            async for event in large:
                yield _computed_for(event, thrown)

    async def _judge(
        self, asked: Question, small: Answer, hold: Hold, trail: Trail, route: Route
    ) -> Choice:
        """Hold, then ask the route again, which may ask for the rest of the answer once."""
        choice = await self._look(asked, small, hold, trail, route)
        if not choice.judged:
            return choice
        hold.hold_on(route.whole_tokens)
        choice = await self._look(asked, small, hold, trail, route)
        if choice.judged:
            longer = f"escalated: small's answer is longer than {route.whole_tokens} tokens"
            return Choice(asked.large.model, longer)
        return choice

    async def _look(
        self, asked: Question, small: Answer, hold: Hold, trail: Trail, route: Route
    ) -> Choice:
        """A small model that fails has judged itself."""
        try:
            await _fill(hold, small)
        except DeadlineExceeded:
            raise
        except AnswerError as error:
            return Choice(asked.large.model, f"escalated: small failed ({error.message})")
        if not hold.is_full:
            return Choice(asked.large.model, "escalated: small's answer broke off")
        started = time.perf_counter()
        text = question(asked.call)
        verdicts = tuple(judge(asked.call, text, answer) for answer in hold.answers())
        choice = route.after(asked, verdicts)
        booked_ms = trail.spans_ms.get("judge", 0.0)
        trail.span("judge", started)
        trail.spans_ms["judge"] += booked_ms
        return choice

    def _note(self, event: Event, call: Call, model: str) -> None:
        if isinstance(event, End):
            self._conversations.remember(call, model)
            self._lengths.learn(model, event.usage.completion_tokens // call.n)

    def _answerer(self, name: str) -> Answerer:
        answerer = self._models.get(name)
        if answerer is None:
            raise UnknownModel(
                f"There is no model {name!r}. Models here: {', '.join(self._models)}.",
                param="model",
                code="model_not_found",
            )
        return answerer


def _decide(trail: Trail, choice: Choice, asked: Question) -> None:
    costs = tuple((one.model, one.cost_nano) for one in (asked.small, asked.large) if one.model)
    trail.decisions.append(
        Decision(
            "cascade",
            choice.model,
            choice.reason,
            policy=asked.call.policy,
            score=choice.score,
            cut=choice.cut,
            costs_nano=costs,
        )
    )


def _tool_turn(standing: Standing, team: Team) -> Choice:
    """Tool results go back to whoever called the tools."""
    if standing.model in {team.small, team.large}:
        return Choice(standing.model, "a turn with tool results stays with the model that began it")
    return Choice(team.large, "a turn with tool results, begun by nobody knows whom: large is safe")


async def _fill(hold: Hold, answer: Answer) -> None:
    async for event in answer:
        hold.add(event)
        if hold.is_full:
            return


async def _resume(hold: Hold, rest: Answer, model: str, trail: Trail) -> Answer:
    """What was held, and then live. Of an answer that ended while it was held nobody else knows
    that it was cut."""
    ended = False
    try:
        for event in hold.events:
            ended = isinstance(event, End)
            yield event
        async for event in rest:
            yield event
    finally:
        if hold.usage is not None and not ended:
            trail.cut(model, hold.usage)


def _bare(event: Event) -> Event:
    """Without the log-probabilities that only the judge asked for."""
    if isinstance(event, Delta) and event.logprobs:
        return replace(event, logprobs=())
    return event


def _throw_away(hold: Hold, model: str, trail: Trail, since: int) -> list[Usage]:
    """What the abandoned attempt took, now that it is closed: a model that was cut short has told
    it (the trail's waste from `since` on), and one that had ended while it was held tells by its
    End. It is this request's to pay whatever becomes of the large model's answer."""
    if hold.usage is not None:
        trail.cut(model, hold.usage)
    thrown = trail.wasted[since:]
    trail.wasted[since:] = [replace(one, why=ABANDONED) for one in thrown]
    return [one.usage for one in thrown]


def _computed_for(event: Event, thrown: list[Usage]) -> Event:
    """What was thrown away was computed for this request, too."""
    if not isinstance(event, End) or not thrown:
        return event
    more = sum(one.prompt_tokens - one.cached_tokens + one.completion_tokens for one in thrown)
    usage = event.usage
    return End(replace(usage, computed_tokens=usage.computed_tokens + more))
