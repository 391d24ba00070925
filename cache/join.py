"""Identical requests in flight share one generation.

Problem. A popular question arrives sixteen times while its first answer is still being written.
The exact cache misses sixteen times. Waiting for the first to finish makes fifteen callers look at
nothing; waiting a little and then giving up pays sixteen times.

Choice. A generation (a `Flight`, cache/flight.py) belongs to nobody who asked: it has its own task,
its own Trail and a log of its events. A listener is a position in that log. It reads what is there
at its own pace and then waits for more, so a late one gets all that was said and then the live
stream, and a slow one holds up nobody.

    requests        listener 2 ┐  listener 1 ┐
    log      Start Delta Delta Delta Delta Delta …  ◄── task ◄── inner answerer

- It goes on while anyone listens. When the last one leaves, the task is cancelled, which closes the
  inner answer and frees the engine's memory; a request that comes then starts afresh.
- The flight may take as long as its most patient listener allows. Each listener leaves at its own
  deadline.
- The owner is who pays: the flight runs in its tenant's name and it alone is told of the computed
  tokens, and of those that were computed in vain. That is the first listener, and when it hangs up,
  another: one of its tenant, or one whose tenant takes over what is reserved (`Purse`). Where none
  can pay, the flight ends, and the first pays for what there was.
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
from collections.abc import Callable
from contextlib import aclosing
from typing import TypeAlias

from cache.flight import Flight, Listener
from cache.key import key_of
from engine.contract import (
    Answer,
    Answerer,
    AnswerError,
    Call,
    DeadlineExceeded,
    Denied,
    Failed,
    TooMany,
    Trail,
)

_FlightKey: TypeAlias = tuple[bytes, float | None, float | None]
"""What is asked, and what the caller takes from a cache: answers that old, that uncertain."""


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
        self._flights: dict[_FlightKey, Flight] = {}

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

    def _launch(self, key: _FlightKey, call: Call, trail: Trail) -> Flight:
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
        flight = self._flights[key] = Flight(call, own)
        flight.task = asyncio.create_task(self._fly(key, flight), name=f"generation-{trail.id}")
        return flight

    async def _fly(self, key: _FlightKey, flight: Flight) -> None:
        try:
            async with aclosing(self._inner(flight.call, flight.trail)) as answer:
                async for event in answer:
                    flight.append(event)
        except AnswerError as error:
            flight.error = error
        except asyncio.CancelledError:
            flight.error = _orphaned() if flight.orphaned else _stopped()
            raise
        except Exception as error:  # noqa: BLE001  reported to every listener
            flight.error = Failed("The answer could not be computed. Try the request again.")
            flight.error.__cause__ = error
        finally:
            self._forget(key, flight)
            flight.over = True
            flight.wake()

    async def _leave(self, key: _FlightKey, flight: Flight, listener: Listener) -> None:
        flight.leave(listener)
        try:
            if listener is flight.owner or flight.door.locked():
                async with flight.door:
                    await self._leave_owned(key, flight, listener)
        finally:
            flight.bill(listener)

    async def _leave_owned(self, key: _FlightKey, flight: Flight, listener: Listener) -> None:
        """Who pays leaves: another takes over, or it ends, or (it is paid) its end is awaited."""
        if listener is not flight.owner or listener.read_end or (flight.over and not flight.ended):
            return
        await flight.bequeath()
        if flight.owner is not listener or flight.over or flight.ended:
            return
        assert flight.task is not None
        if flight.orphaned or not flight.listeners:
            self._forget(key, flight)
            flight.task.cancel()
        await asyncio.wait([flight.task])

    def _forget(self, key: _FlightKey, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _stopped() -> AnswerError:
    return Failed("The server stopped the generation. Try the request again.")


def _orphaned() -> AnswerError:
    return TooMany(
        "Who began this answer has left, and no tenant that waits for it has the budget and the "
        "tokens a minute that the whole of it may take. Ask again for fewer max_tokens, or later.",
        code="answer_orphaned",
    )


def _ask_again(flight: Flight, listener: Listener) -> bool:
    """Whether the flight failed, before it said anything, in a way that is not the listener's."""
    if flight.error is None or flight.log or not listener.joined or listener is flight.owner:
        return False
    if isinstance(flight.error, DeadlineExceeded):
        return listener.trail.remaining_s() != 0
    refused = isinstance(flight.error, TooMany | Denied)
    return refused and flight.trail.tenant != listener.trail.tenant
