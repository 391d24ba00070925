"""The async face of the engine: an answerer for each model, over one engine thread.

What happens where, for one call:

    event loop     check ─▶ (thread: render, tokenise) ─▶ submit ─▶ await mailbox ─▶ Start, events
    engine thread                                          queue ─▶ prefill ─▶ decode ─▶ mailbox

Start is sent with the first event of the answer, so that whatever fails in queue or prefill can
still become an HTTP status. Closing the generator at any point cancels the request, and waits for
the step that is under way: what was computed by then is known to the engine thread alone, and who
hangs up owes it (`Trail.cut`).

Tokenising leaves the event loop: 100 KB of prompt take tens of milliseconds, and the tokenizer
works without Python's lock. The hop costs 50 to 100 µs.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from engine.contract import Answerer, Call, End, Event, Overloaded, Start, Trail
from engine.lane import Lane, LaneStats
from engine.loop import Loop, Report, log_error
from engine.mailbox import Mailbox
from engine.request import Request, check, make_request

TOKENISING_THREADS = 2
LAST_STEP_S = 30.0
"""How long a step that has begun is waited for."""


class Engine:
    """Models by name, answered by one engine thread between `start` and `stop`."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        report: Report = log_error,
    ) -> None:
        """`clock` must be the one that `Trail.deadline` is measured with. `rng` seeds the calls
        that name no seed. `report` is told of every failure that the engine survives."""
        self._lanes = dict(lanes)
        self._clock = clock
        self._wall = wall
        self._rng = rng or random.SystemRandom()
        self._ids = itertools.count()
        self._loop = Loop(self._lanes, clock, report)
        self._thread = threading.Thread(target=self._loop.run, name="engine", daemon=True)
        self._tokenising = ThreadPoolExecutor(TOKENISING_THREADS, "tokenise")
        self._draining = False

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Refuse new calls, let those in the engine end within `grace_s`, fail the rest."""
        self._draining = True
        until = self._clock() + grace_s
        while self._loop.num_live and self._clock() < until:  # noqa: ASYNC110 — a thread's
            await asyncio.sleep(0.01)
        self._loop.stop()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, LAST_STEP_S)
        self._tokenising.shutdown(wait=False)

    @property
    def alive(self) -> bool:
        """Whether the engine thread runs: for readiness."""
        return self._thread.is_alive()

    @property
    def problem(self) -> str | None:
        """Why the engine does not answer, in words for an operator; None while it does."""
        if self.alive:
            return None
        return self._loop.lost or "the engine's thread is not running"

    @property
    def lost(self) -> str | None:
        """Why no model of this process can compute any more; None where that is not so."""
        return self._loop.lost

    def stats(self) -> dict[str, LaneStats]:
        """Figures by model, for metrics and the dashboard; costs nothing."""
        return self._loop.stats()

    @property
    def lanes(self) -> Mapping[str, Lane]:
        """The models by name: for their context length and settings."""
        return dict(self._lanes)

    def answerer(self, name: str) -> Answerer:
        """The answerer of one model; `name` is also the origin and the model that it reports."""
        lane = self._lanes[name]

        async def answer(call: Call, trail: Trail) -> AsyncGenerator[Event, None]:
            request = await self._submit(lane, call, trail)
            event: Event | None = None
            try:
                event = await request.mailbox.take()
                self._book_waiting(trail, request)
                yield Start(trail.id, int(self._wall()), name, name)
                while not isinstance(event, End):
                    yield event
                    event = await request.mailbox.take()
                self._book_decode(trail, request)
                yield event
            finally:
                if not isinstance(event, End):
                    await self._give_up(request, name, trail)

        return answer

    async def _give_up(self, request: Request, name: str, trail: Trail) -> None:
        """Let an answer go that will not be heard to its end, and say what it took."""
        self._loop.cancel(request)
        try:
            if self.alive and _is_here(request.mailbox.loop):
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAST_STEP_S):
                        await request.mailbox.empty()
        finally:
            trail.cut(name, request.computed())

    async def _submit(self, lane: Lane, call: Call, trail: Trail) -> Request:
        if self._draining:
            raise Overloaded("The engine is shutting down; try again soon.", retry_after_s=5.0)
        arrival = self._clock()
        check(call, lane)
        running = asyncio.get_running_loop()
        tokens = await running.run_in_executor(self._tokenising, lane.text.encode, call)
        request = make_request(
            call,
            trail,
            lane,
            tokens,
            mailbox=Mailbox(),
            arrival=arrival,
            first_id=next(self._ids) << 8,  # room for MAX_CHOICES
            seed=self._rng.getrandbits(63),
        )
        self._loop.submit(request)
        return request

    def _book_waiting(self, trail: Trail, request: Request) -> None:
        admitted, first = request.admitted, request.first_token
        if admitted is not None and first is not None:
            trail.stage("queue", request.arrival, admitted)
            trail.stage("prefill", admitted, first)

    def _book_decode(self, trail: Trail, request: Request) -> None:
        if request.first_token is not None:
            trail.stage("decode", request.first_token, self._clock())


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether it is `loop` that runs this. Not so for an answer that nobody closed and whose loop
    is gone: nothing can be waited for there."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
