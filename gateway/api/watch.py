"""What can end a request from outside: the caller hangs up, its time is over, the server closes.

One `Watch` per request, and it costs next to nothing until the request first has to wait (see
drive.py): then `arm` starts listening for the disconnect and sets the deadline's timer. Ending a
request means cancelling the task that answers it, with the reason noted first, so that the task
can tell our cancellation from the event loop's and say the right thing to whoever is left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from engine.contract import AnswerError, DeadlineExceeded
from gateway.asgi import Receive
from gateway.errors import CLIENT_GONE, BodyTooSlow


class ClientGone(AnswerError):
    """The caller hung up. Never sent: there is nobody to send it to."""

    status = CLIENT_GONE
    kind = "client_gone"


class Watch:
    """Owned by the task that answers one request, from the moment it starts. `stop` ends it."""

    __slots__ = ("_listener", "_loop", "_receive", "_stopped", "_task", "_timer", "reason")

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task(loop)
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._loop = loop
        self._receive = receive
        self._listener: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.reason: AnswerError | None = None

    def arm_for_body(self, timeout_s: float) -> None:
        """While the body is read: bound the time it takes. Reading notices a hang-up by itself."""
        if self._timer is None:
            self._timer = self._loop.call_later(timeout_s, self.end, _body_too_slow(timeout_s))

    def arm(self, deadline: float) -> None:
        """While an answer is awaited: listen for a hang-up, and end at `deadline` (monotonic
        seconds). Only the first call does anything."""
        if self._listener is not None or self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._listener = self._loop.create_task(self._listen())
        left_s = max(0.0, deadline - time.monotonic())
        self._timer = self._loop.call_later(left_s, self.end, _too_late())

    def end(self, reason: AnswerError) -> None:
        """Stop answering, because of `reason`. The first reason wins."""
        if self._stopped or self.reason is not None:
            return
        self.reason = reason
        self._task.cancel()

    def absorb(self) -> AnswerError | None:
        """After a CancelledError: the reason, if it was ours; the task may then go on. None if
        somebody else cancelled it, who must be obeyed."""
        if self.reason is not None:
            self._task.uncancel()
        return self.reason

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGone("The client closed the connection."))


def _body_too_slow(timeout_s: float) -> BodyTooSlow:
    return BodyTooSlow(
        f"The body did not arrive within {timeout_s:g} s; send it in one go.", code="body_timeout"
    )


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The answer was not ready in time; ask for fewer tokens, or send the request again later.",
        code="deadline_exceeded",
    )


class Heartbeat:
    """Sends an SSE comment whenever a stream was silent for `every_s`, so that proxies between us
    and the caller do not take a long prefill for a dead connection."""

    __slots__ = ("_every_s", "_loop", "_quiet_since", "_send", "_sending", "_timer")

    def __init__(self, every_s: float, send: Callable[[], Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._every_s = every_s
        self._send = send
        self._quiet_since = self._loop.time()
        self._sending: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(every_s, self._tick)

    def wrote(self) -> None:
        self._quiet_since = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()

    def _tick(self) -> None:
        silent_s = self._loop.time() - self._quiet_since
        due_in_s = self._every_s - silent_s
        if due_in_s <= 0:
            due_in_s = self._every_s
            # A reader too slow for one comment is not sent a second.
            if self._sending is None or self._sending.done():
                self._sending = self._loop.create_task(self._send())
            self._quiet_since = self._loop.time()
        self._timer = self._loop.call_later(due_in_s, self._tick)
