"""Identical requests in flight share one generation.

Problem. A popular question arrives sixteen times while its first answer is still being written.
The exact cache misses sixteen times. Waiting for the first to finish makes fifteen callers look at
nothing; waiting a little and then giving up pays sixteen times.

Choice. A generation (a `Flight`) belongs to nobody who asked: it has its own task, its own Trail
and a log of its events. A listener is a position in that log. It reads what is there at its own
pace and then waits for more, so a late one gets all that was said and then the live stream, and a
slow one holds up nobody.

    requests        listener 2 ┐  listener 1 ┐
    log      Start Delta Delta Delta Delta Delta …  ◄── task ◄── inner answerer

- It goes on while anyone listens. When the last one leaves, the task is cancelled, which closes the
  inner answer and frees the engine's memory; a request that comes then starts afresh.
- The flight may take as long as its most patient listener allows. Each listener leaves at its own
  deadline.
- The owner is who pays: the flight runs in its tenant's name and it alone is told of the computed
  tokens, and of those that were computed in vain. That is the first listener, and when it hangs up,
  the next.
- A failure is reported to everyone, once each. Two are somebody's own: a refusal of the owner's
  tenant (its rate, its budget) is not another tenant's, and a flight that died of its deadline is
  asked again by who has time left. In each such round an owner drops out, so rounds end.
- The table's entry goes when the flight is over. By then the answer is stored (cache/exact.py says
  why no request can fall between).

Not joined: what the exact cache may not store (best-of-n sampling asks for n answers), and what the
caller wants fresh (no-store, no-cache) or stored (only-if-cached). Calls that differ in max-age or
Sluice-Max-Error do not meet: what satisfies one may be too old, or too uncertain, for the other.

Rejected: the first request drives and the others watch (the answer dies with its caller); a queue
per listener (memory per slow reader; here it is one log, bounded by the answer).

Price: a task and a wake-up whenever events come, for lone requests too (30 µs for 35 events that
are there at once, 3 µs an event of a live stream), and no back-pressure: a generation does not wait
for its readers, its log holds the whole answer.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from cache.key import key_of
from engine.contract import (
    Answer,
    Answerer,
    AnswerError,
    Call,
    DeadlineExceeded,
    Decision,
    Delta,
    Denied,
    End,
    Event,
    Failed,
    Start,
    TooMany,
    Trail,
)

_STORED: Final = frozenset({"exact", "semantic"})
"""Origins that say more of an answer than that it was shared."""

_FlightKey: TypeAlias = tuple[bytes, float | None, float | None]
"""What is asked, and what the caller takes from a cache: answers that old, that uncertain."""


@dataclass(slots=True, eq=False)
class _Listener:
    """One request at one flight."""

    trail: Trail
    joined: bool
    """It came to a flight that was under way."""
    own_spans: frozenset[str]
    next: int = 0
    """Position in the flight's log."""
    told_decisions: int = 0
    read_end: bool = False
    alarm: asyncio.TimerHandle | None = None
    """One for its whole stay: a timeout around every wait would cost as much as the wait."""
    out_of_time: bool = False


@dataclass(slots=True, eq=False)
class _Flight:
    """One generation. Its task writes; listeners read. Belongs to the Join that launched it."""

    call: Call
    trail: Trail
    log: list[Event] = field(default_factory=list)
    over: bool = False
    ended: bool = False
    """`End` is in the log."""
    error: AnswerError | None = None
    listeners: list[_Listener] = field(default_factory=list)
    owner: _Listener | None = None
    billed: int = 0
    """How much of the trail's waste the owner has been told."""
    task: asyncio.Task[None] | None = None
    sleepers: list[asyncio.Future[None]] = field(default_factory=list)

    def enter(self, trail: Trail) -> _Listener:
        listener = _Listener(trail, self.owner is not None, frozenset(trail.spans_ms))
        self.listeners.append(listener)
        if self.owner is None:
            self.owner = listener
        self.trail.tags += tuple(tag for tag in trail.tags if tag not in self.trail.tags)
        self._extend_deadline()
        return listener

    def leave(self, listener: _Listener) -> None:
        self.listeners.remove(listener)
        if listener.alarm is not None:
            listener.alarm.cancel()
        failed = self.over and not self.ended
        if failed or not self.listeners:
            return
        self._extend_deadline()
        heirs = [other for other in self.listeners if not other.read_end]
        if listener is self.owner and not listener.read_end and heirs:
            self._pass_on(heirs[0])

    def _extend_deadline(self) -> None:
        deadlines = [listener.trail.deadline for listener in self.listeners]
        known = [deadline for deadline in deadlines if deadline is not None]
        self.trail.deadline = max(known) if len(known) == len(deadlines) else None

    def _pass_on(self, heir: _Listener) -> None:
        assert self.owner is not None
        self.owner = heir
        self.trail.tenant, self.trail.user = heir.trail.tenant, heir.trail.user
        self.trail.share = heir.trail.share

    def append(self, event: Event) -> None:
        self.log.append(event)
        if isinstance(event, End):
            self.ended = True
        if self.sleepers:
            self.wake()

    def wake(self) -> None:
        sleepers, self.sleepers = self.sleepers, []
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def news(self, listener: _Listener) -> None:
        """Return when there is something to read, or nothing more will come. Raises
        DeadlineExceeded when the listener's time is up before that."""
        while listener.next >= len(self.log) and not self.over:
            if listener.out_of_time:
                raise DeadlineExceeded(
                    "The answer was not complete at the request's deadline. "
                    "Allow more time, or ask for fewer tokens.",
                    code="deadline_exceeded",
                )
            loop = asyncio.get_running_loop()
            if listener.alarm is None and listener.trail.deadline is not None:
                remaining_s = listener.trail.remaining_s() or 0.0
                listener.alarm = loop.call_later(remaining_s, self._run_out, listener)
            sleeper: asyncio.Future[None] = loop.create_future()
            self.sleepers.append(sleeper)
            await sleeper

    def _run_out(self, listener: _Listener) -> None:
        listener.out_of_time = True
        self.wake()

    async def next_event(self, listener: _Listener) -> Event | None:
        """What comes next for this listener, or None after the last. Raises the flight's failure
        after all that was said before it."""
        if listener.read_end:
            return None
        await self.news(listener)
        if listener.next < len(self.log):
            event = self.log[listener.next]
            listener.next += 1
            return _as_heard(event, self, listener)
        if self.error is not None:
            raise _copy_of(self.error)
        return None


class Join:
    """Lets identical calls in flight share one answer of the inner answerer.

    `may_share` says which calls may (Shelf.may_share); others pass through untouched.
    """

    def __init__(
        self,
        inner: Answerer,
        *,
        may_share: Callable[[Call, Trail], bool],
        key: Callable[[Call], bytes] = key_of,
    ) -> None:
        self._inner = inner
        self._may_share = may_share
        self._key = key
        self._flights: dict[_FlightKey, _Flight] = {}

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    def __call__(self, call: Call, trail: Trail) -> Answer:
        """Of a call that is not shared the inner answer itself: a layer that adds nothing costs
        nothing."""
        if not self._may_share(call, trail):
            return self._inner(call, trail)
        return self._shared(call, trail)

    async def _shared(self, call: Call, trail: Trail) -> Answer:
        asked = trail.directives
        key = (self._key(call), asked.max_age_s, asked.max_error)
        while True:
            flight = self._flights.get(key) or self._launch(key, call, trail)
            listener = flight.enter(trail)
            try:
                await flight.news(listener)
                if _ask_again(flight, listener):
                    continue
                while (heard := await flight.next_event(listener)) is not None:
                    yield heard
                return
            finally:
                await self._leave(key, flight, listener)

    def _launch(self, key: _FlightKey, call: Call, trail: Trail) -> _Flight:
        own = Trail(
            id=trail.id,
            tenant=trail.tenant,
            user=trail.user,
            share=trail.share,
            whole=trail.whole,
            directives=trail.directives,
            drafts=list(trail.drafts),
            traceparent=trail.traceparent,
        )
        flight = self._flights[key] = _Flight(call, own)
        flight.task = asyncio.create_task(self._fly(key, flight), name=f"generation-{trail.id}")
        return flight

    async def _fly(self, key: _FlightKey, flight: _Flight) -> None:
        try:
            async with aclosing(self._inner(flight.call, flight.trail)) as answer:
                async for event in answer:
                    flight.append(event)
        except AnswerError as error:
            flight.error = error
        except asyncio.CancelledError:
            flight.error = Failed("The server stopped the generation. Try the request again.")
            raise
        except Exception as error:  # noqa: BLE001  reported to every listener
            flight.error = Failed("The answer could not be computed. Try the request again.")
            flight.error.__cause__ = error
        finally:
            self._forget(key, flight)
            flight.over = True
            flight.wake()

    async def _leave(self, key: _FlightKey, flight: _Flight, listener: _Listener) -> None:
        flight.leave(listener)
        try:
            if flight.listeners or flight.over or flight.ended:
                return
            self._forget(key, flight)
            assert flight.task is not None
            flight.task.cancel()
            await asyncio.wait([flight.task])
        finally:
            _bill(flight, listener)

    def _forget(self, key: _FlightKey, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _ask_again(flight: _Flight, listener: _Listener) -> bool:
    """Whether the flight failed, before it said anything, in a way that is not the listener's."""
    if flight.error is None or flight.log or not listener.joined or listener is flight.owner:
        return False
    if isinstance(flight.error, DeadlineExceeded):
        return listener.trail.remaining_s() != 0
    refused = isinstance(flight.error, TooMany | Denied)
    return refused and flight.trail.tenant != listener.trail.tenant


def _as_heard(event: Event, flight: _Flight, listener: _Listener) -> Event:
    """The event as this listener is to see it; brings its trail up to date at both ends."""
    if isinstance(event, Delta):
        return event
    if isinstance(event, Start):
        _tell_cache_status(flight, listener)
        _tell(flight, listener)
        shared = listener.joined and event.origin not in _STORED
        origin = "joined" if shared else event.origin
        return replace(event, id=listener.trail.id, origin=origin)
    if isinstance(event, End):
        listener.read_end = True
        _tell(flight, listener)
        if listener is not flight.owner:
            return End(replace(event.usage, computed_tokens=0))
        _bill(flight, listener)
    return event


def _bill(flight: _Flight, listener: _Listener) -> None:
    """Tell the owner, once, what was computed in vain. If it leaves before an `End` that is there
    already, and nobody inherits it, the whole answer was."""
    if listener is not flight.owner:
        return
    listener.trail.wasted.extend(flight.trail.wasted[flight.billed :])
    flight.billed = len(flight.trail.wasted)
    if listener.read_end or not flight.ended:
        return
    listener.read_end = True
    start, end = flight.log[0], flight.log[-1]
    if isinstance(start, Start) and isinstance(end, End) and end.usage.computed_tokens:
        listener.trail.cut(start.model, end.usage)


def _tell(flight: _Flight, listener: _Listener) -> None:
    """Copy what the flight's trail collected: stages that the listener did not go through itself,
    and decisions made since it was last told."""
    trail = listener.trail
    for stage, ms in flight.trail.spans_ms.items():
        if stage not in listener.own_spans:
            trail.spans_ms[stage] = ms
            trail.spans_at[stage] = flight.trail.spans_at[stage]
    made: list[Decision] = flight.trail.decisions
    trail.decisions.extend(made[listener.told_decisions :])
    listener.told_decisions = len(made)


def _tell_cache_status(flight: _Flight, listener: _Listener) -> None:
    """The layers inside report once, on the flight's trail. A follower's own miss of the exact
    cache becomes a collapsed one, unless the flight's second look at the store found something."""
    trail, inner = listener.trail, flight.trail.cache
    late_hit = any(status.layer == "exact" for status in inner)
    outer = [status for status in trail.cache if not (late_hit and status.layer == "exact")]
    if listener.joined:
        outer = [replace(s, collapsed=True) if s.layer == "exact" else s for s in outer]
    trail.cache[:] = outer + inner
    trail.age_s = flight.trail.age_s


def _copy_of(error: AnswerError) -> AnswerError:
    """Each listener raises its own: one raised twice would gather everyone's traceback."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__ or error
    return own
