"""Several calls answered as one: the choices of all, numbered in a row.

Each call runs in a task of its own, so that one that waits holds up no other; what they say is
handed over through a queue that is bounded, so that a slow reader slows them all down. One failure
ends the whole: a list of answers with a hole in it is not what was asked for.

The whole begins when every call has: only then is it known what the headers have to say (who
computed, what the caches held) and that no failure can still be a status. Price: what is said
before the last call begins is held in memory, and a stream's first token waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.contract import (
    Answer,
    Answerer,
    CacheStatus,
    Call,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Start,
    Trail,
    Usage,
    unroll,
)

QUEUE_EVENTS = 64
FROM_OTHERS = ("joined", "semantic", "exact")
"""Origins of what was not computed for this request."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What one call said, or why it failed. `place` counts the calls."""

    place: int
    event: Event | Exception


def answer_all(answerer: Answerer, calls: Sequence[Call], trail: Trail) -> Answer:
    """One call is passed on as it is; several are merged."""
    if len(calls) == 1:
        return answerer(calls[0], trail)
    return _merged(answerer, calls, trail)


async def _merged(answerer: Answerer, calls: Sequence[Call], trail: Trail) -> Answer:
    said: asyncio.Queue[_Said] = asyncio.Queue(QUEUE_EVENTS)
    trails = [
        replace(trail, spans_ms={}, spans_at={}, cache=[], drafts=[], decisions=[], wasted=[])
        for _ in calls
    ]
    offset = 0
    tasks = []
    for place, (call, own) in enumerate(zip(calls, trails, strict=True)):
        tasks.append(asyncio.create_task(_pump(answerer(call, own), place, offset, said)))
        offset += call.n
    try:
        total, ended = Usage(0, 0), 0
        start, held = await _all_started(len(calls), said)
        _gather_cache(trail, trails)
        yield start
        while ended < len(calls):
            event = held.popleft() if held else _event(await said.get())
            if isinstance(event, End):
                total, ended = _sum(total, event.usage), ended + 1
            else:
                yield event
        _gather(trail, trails)
        yield End(total)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _all_started(calls: int, said: asyncio.Queue[_Said]) -> tuple[Start, deque[Event]]:
    """One Start for all, and what came before the last of them began."""
    starts: dict[int, Start] = {}
    held: deque[Event] = deque()
    while len(starts) < calls:
        one = await said.get()
        event = _event(one)
        if isinstance(event, Start):
            starts[one.place] = event
        else:
            held.append(event)
    return min((starts[place] for place in range(calls)), key=_nearness), held


def _nearness(start: Start) -> int:
    """0 for who computed, then what is nearer to it: what costs most is what is told."""
    return FROM_OTHERS.index(start.origin) + 1 if start.origin in FROM_OTHERS else 0


def _event(said: _Said) -> Event:
    if isinstance(said.event, Exception):
        raise said.event
    return said.event


async def _pump(answer: Answer, place: int, offset: int, said: asyncio.Queue[_Said]) -> None:
    """One call's events into the queue, its choices moved by `offset`."""
    try:
        ended = False
        async for event in answer:
            for one in unroll(event):
                moved = one
                if isinstance(one, Delta | Finish):
                    moved = replace(one, index=one.index + offset)
                ended = ended or isinstance(one, End)
                await said.put(_Said(place, moved))
        if not ended:
            cut = Failed("The answer was cut before its end; send the request again.")
            await said.put(_Said(place, cut))
    except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
        await said.put(_Said(place, error))
    finally:
        await answer.aclose()


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.cached_tokens + b.cached_tokens,
        a.computed_tokens + b.computed_tokens,
    )


def _gather_cache(trail: Trail, trails: Sequence[Trail]) -> None:
    """What the caches said of all calls: one member for each outcome, with how many had it. The
    age is that of the oldest part."""
    outcomes: dict[CacheStatus, list[CacheStatus]] = {}
    for own in trails:
        for status in own.cache:
            outcomes.setdefault(replace(status, ttl_s=None, detail=""), []).append(status)
    for outcome, alike in outcomes.items():
        ttls = [one.ttl_s for one in alike if one.ttl_s is not None]
        detail = f"{len(alike)} of {len(trails)} prompts"
        trail.cache.append(replace(outcome, ttl_s=min(ttls, default=None), detail=detail))
    trail.age_s = max((own.age_s for own in trails if own.age_s is not None), default=None)


def _gather(trail: Trail, trails: Sequence[Trail]) -> None:
    """Decisions of all; times are the longest of each stage."""
    for own in trails:
        trail.decisions.extend(own.decisions)
        for name, ms in own.spans_ms.items():
            if ms > trail.spans_ms.get(name, 0.0):
                trail.spans_ms[name] = ms
                trail.spans_at[name] = own.spans_at[name]
