"""From filed calls to answers: what a reader of the engine sees, wherever the engine runs.

Start is sent with the first event of the answer, so that whatever fails in queue or prefill can
still become an HTTP status. Closing the generator at any point cancels the request, and waits for
the step that is under way: what was computed by then is known to the engine thread alone, and who
hangs up owes it (`Trail.cut`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from engine.contract import Answerer, Call, End, Event, Start, Trail, Usage
from engine.mailbox import Mailbox

LAST_STEP_S = 30.0
"""How long who leaves waits for a step that has begun."""


class Filed(Protocol):
    """A call that an engine has taken. Times in seconds of the engine's clock."""

    @property
    def arrival(self) -> float: ...

    @property
    def admitted(self) -> float | None:
        """When it left the queue."""
        ...

    @property
    def first_token(self) -> float | None: ...

    def computed(self) -> Usage:
        """What was computed of an answer that was cut, asked after its last event."""
        ...


F = TypeVar("F", bound=Filed)


def answerer_over(
    name: str,
    file: Callable[[Call, Trail, Mailbox], Awaitable[F]],
    cancel: Callable[[F], None],
    *,
    alive: Callable[[], bool],
    clock: Callable[[], float],
    wall: Callable[[], float],
) -> Answerer:
    """The answerer of one model; `name` is also the origin and the model that it reports. `file`
    takes a call on, or raises why not; `cancel` lets go of one before its End, after which its
    mailbox gets a last event as long as the engine is `alive`."""

    async def answer(call: Call, trail: Trail) -> AsyncGenerator[Event, None]:
        mailbox = Mailbox()
        filed = await file(call, trail, mailbox)
        event: Event | None = None
        try:
            event = await mailbox.take()
            _book_waiting(trail, filed)
            yield Start(trail.id, int(wall()), name, name)
            while not isinstance(event, End):
                yield event
                event = await mailbox.take()
            if filed.first_token is not None:
                trail.stage("decode", filed.first_token, clock())
            yield event
        finally:
            if not isinstance(event, End):
                await give_up(filed, mailbox, trail)

    async def give_up(filed: F, mailbox: Mailbox, trail: Trail) -> None:
        """Let an answer go that will not be heard to its end, and say what it took."""
        cancel(filed)
        try:
            if alive() and mailbox.is_here:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAST_STEP_S):
                        await mailbox.empty()
        finally:
            trail.cut(name, filed.computed())

    return answer


def _book_waiting(trail: Trail, filed: Filed) -> None:
    admitted, first = filed.admitted, filed.first_token
    if admitted is not None and first is not None:
        trail.stage("queue", filed.arrival, admitted)
        trail.stage("prefill", admitted, first)
