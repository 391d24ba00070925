"""The async face of the engine: an answerer for each model, over one engine thread.

What happens where, for one call:

    event loop     check ─▶ (thread: render, tokenise) ─▶ submit ─▶ await mailbox ─▶ Start, events
    engine thread                                          queue ─▶ prefill ─▶ decode ─▶ mailbox

Tokenising leaves the event loop: 100 KB of prompt take tens of milliseconds, and the tokenizer
works without Python's lock. The hop costs 50 to 100 µs.

Who has threads and no event loop (gateway/engine_process/child.py) prepares and submits calls.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from engine.answering import answerer_over
from engine.contract import Answerer, Call, Overloaded, Trail
from engine.lane import Lane, LaneStats
from engine.loop import Loop, Report, log_error
from engine.mailbox import Addressee, Mailbox
from engine.request import Request, check, make_request
from engine.sequence import Tokens

TOKENISING_THREADS = 2
LAST_STEP_S = 4.0
"""How long `stop` waits for a step that has begun. Who was waiting for it has been told."""


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

        async def file(call: Call, trail: Trail, mailbox: Mailbox) -> Request:
            self._refuse_late()
            arrival = self._clock()
            check(call, lane)
            running = asyncio.get_running_loop()
            tokens = await running.run_in_executor(self._tokenising, lane.text.encode, call)
            request = self._request(lane, call, trail, tokens, mailbox=mailbox, arrival=arrival)
            self.submit(request)
            return request

        return answerer_over(
            name,
            file,
            self.cancel,
            alive=lambda: self.alive,
            clock=self._clock,
            wall=self._wall,
        )

    def prepare(
        self, name: str, call: Call, trail: Trail, mailbox: Addressee, arrival: float
    ) -> Request:
        """Check and tokenise a call in the calling thread. What comes of it once it is submitted
        goes to `mailbox`, from the engine thread. Raises AnswerError."""
        lane = self._lanes[name]
        self._refuse_late()
        check(call, lane)
        tokens = lane.text.encode(call)
        return self._request(lane, call, trail, tokens, mailbox=mailbox, arrival=arrival)

    def submit(self, request: Request) -> None:
        """Queue what was prepared, from any thread. Raises Failed where the engine has ended."""
        self._loop.submit(request)

    def cancel(self, request: Request) -> None:
        """Give up a request, from any thread. Harmless when it is done."""
        self._loop.cancel(request)

    def _refuse_late(self) -> None:
        if self._draining:
            raise Overloaded("The engine is shutting down; try again soon.", retry_after_s=5.0)

    def _request(
        self,
        lane: Lane,
        call: Call,
        trail: Trail,
        tokens: Tokens,
        *,
        mailbox: Addressee,
        arrival: float,
    ) -> Request:
        return make_request(
            call,
            trail,
            lane,
            tokens,
            mailbox=mailbox,
            arrival=arrival,
            first_id=next(self._ids) << 8,  # room for MAX_CHOICES
            seed=self._rng.getrandbits(63),
        )
