"""Several calls answered as one: the choices of all, numbered in a row.

Each call runs in a task of its own, so that one that waits holds up no other; what they say is
handed over through a queue that is bounded, so that a slow reader slows them all down. One failure
ends the whole: a list of answers with a hole in it is not what was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from engine.contract import (
    Answer,
    Answerer,
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


def answer_all(answerer: Answerer, calls: Sequence[Call], trail: Trail) -> Answer:
    """One call is passed on as it is; several are merged."""
    if len(calls) == 1:
        return answerer(calls[0], trail)
    return _merged(answerer, calls, trail)


async def _merged(answerer: Answerer, calls: Sequence[Call], trail: Trail) -> Answer:
    said: asyncio.Queue[Event | Exception] = asyncio.Queue(QUEUE_EVENTS)
    trails = [replace(trail, spans_ms={}, cache=[], drafts=[], decisions=[]) for _ in calls]
    offset = 0
    tasks = []
    for call, own in zip(calls, trails, strict=True):
        tasks.append(asyncio.create_task(_pump(answerer(call, own), offset, said)))
        offset += call.n
    try:
        total = Usage(0, 0)
        started, ended = False, 0
        while ended < len(calls):
            event = await said.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, End):
                total, ended = _sum(total, event.usage), ended + 1
            elif not isinstance(event, Start):
                yield event
            elif not started:
                started = True
                yield event
        _gather(trail, trails)
        yield End(total)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(answer: Answer, offset: int, said: asyncio.Queue[Event | Exception]) -> None:
    """One call's events into the queue, its choices moved by `offset`."""
    try:
        ended = False
        async for event in answer:
            for one in unroll(event):
                moved = one
                if isinstance(one, Delta | Finish):
                    moved = replace(one, index=one.index + offset)
                ended = ended or isinstance(one, End)
                await said.put(moved)
        if not ended:
            await said.put(Failed("The answer was cut before its end; send the request again."))
    except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
        await said.put(error)
    finally:
        await answer.aclose()


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.cached_tokens + b.cached_tokens,
        a.computed_tokens + b.computed_tokens,
    )


def _gather(trail: Trail, trails: Sequence[Trail]) -> None:
    """The first call's story stands for all in the headers; times are the longest of each stage."""
    trail.cache.extend(trails[0].cache)
    trail.age_s = trails[0].age_s
    for own in trails:
        trail.decisions.extend(own.decisions)
        for name, ms in own.spans_ms.items():
            trail.spans_ms[name] = max(ms, trail.spans_ms.get(name, 0.0))
