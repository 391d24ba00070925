"""One generation that several requests listen to: its log, who pays, and what each is told.

The task of cache/join.py writes the log; each listener reads it at its own pace. Everybody hears
the same answer under an id of their own, and of what was computed only the owner is told.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field, replace
from typing import Final

from engine.contract import (
    AnswerError,
    Call,
    DeadlineExceeded,
    Decision,
    Delta,
    End,
    Event,
    Start,
    Trail,
)

_STORED: Final = frozenset({"exact", "semantic"})
"""Origins that say more of an answer than that it was shared."""


@dataclass(slots=True, eq=False)
class Listener:
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
class Flight:
    """Belongs to the Join that launched it."""

    call: Call
    trail: Trail
    log: list[Event] = field(default_factory=list)
    over: bool = False
    ended: bool = False
    """`End` is in the log."""
    error: AnswerError | None = None
    listeners: list[Listener] = field(default_factory=list)
    owner: Listener | None = None
    billed: int = 0
    """How much of the trail's waste the owner has been told."""
    task: asyncio.Task[None] | None = None
    sleepers: list[asyncio.Future[None]] = field(default_factory=list)
    door: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Its owners leave through it, one at a time: the next one's money may have to be asked for."""
    orphaned: bool = False
    """Its owner left, and nobody else can pay for it."""

    def enter(self, trail: Trail) -> Listener:
        listener = Listener(trail, self.owner is not None, frozenset(trail.spans_ms))
        self.listeners.append(listener)
        if self.owner is None:
            self.owner = listener
        self.trail.tags += tuple(tag for tag in trail.tags if tag not in self.trail.tags)
        self._extend_deadline()
        return listener

    def leave(self, listener: Listener) -> None:
        self.listeners.remove(listener)
        if listener.alarm is not None:
            listener.alarm.cancel()
        if self.listeners and not self.over:
            self._extend_deadline()

    def _extend_deadline(self) -> None:
        deadlines = [listener.trail.deadline for listener in self.listeners]
        known = [deadline for deadline in deadlines if deadline is not None]
        self.trail.deadline = max(known) if len(known) == len(deadlines) else None

    async def bequeath(self) -> None:
        """Find another owner for one that has left: of the same tenant, or one that can pay."""
        assert self.owner is not None
        tenant, refused = self.owner.trail.tenant, set[str]()
        while (heir := self._heir(tenant, refused)) is not None:
            name = heir.trail.tenant
            try:
                if name != tenant and (self.ended or not await self._hand_over(name)):
                    return
            except AnswerError:
                refused.add(name)
                continue
            self.owner = heir
            self.trail.tenant, self.trail.user = name, heir.trail.user
            self.trail.share = heir.trail.share
            return
        self.orphaned = bool(self.listeners) and not self.ended

    def _heir(self, tenant: str, refused: set[str]) -> Listener | None:
        heirs = [one for one in self.listeners if not one.read_end]
        heirs.sort(key=lambda one: one.trail.tenant != tenant)
        return next((one for one in heirs if one.trail.tenant not in refused), None)

    async def _hand_over(self, heir: str) -> bool:
        purse = self.trail.purse
        return purse is None or await purse.pass_on(heir)

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

    async def news(self, listener: Listener) -> None:
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

    def _run_out(self, listener: Listener) -> None:
        listener.out_of_time = True
        self.wake()

    async def next_event(self, listener: Listener) -> Event | None:
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

    def bill(self, listener: Listener) -> None:
        """Tell the owner, once, what was computed in vain. If it leaves before an `End` that is
        there already, and nobody inherits it, the whole answer was."""
        if listener is not self.owner:
            return
        listener.trail.wasted.extend(self.trail.wasted[self.billed :])
        self.billed = len(self.trail.wasted)
        if listener.read_end or not self.ended:
            return
        listener.read_end = True
        start, end = self.log[0], self.log[-1]
        if isinstance(start, Start) and isinstance(end, End) and end.usage.computed_tokens:
            listener.trail.cut(start.model, end.usage)


def _as_heard(event: Event, flight: Flight, listener: Listener) -> Event:
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
        flight.bill(listener)
    return event


def _tell(flight: Flight, listener: Listener) -> None:
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


def _tell_cache_status(flight: Flight, listener: Listener) -> None:
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
