"""The engine in a process of its own, as a backend: calls go over, events come back.

    Answerer ─▶ Ask ─────────── the line ──────────▶ child.py
    Mailbox  ◀─ Letters, one frame a step ◀───────── the engine thread

Problem. Event loop and engine thread share one interpreter, and a small model on a fast GPU asks
more of it than there is: each token costs the engine's host some time and the way to a socket some
more. Choice: everything of the gateway stays in one process (caches, joins, the ledger and limits
are in its memory and need no other process's consent), the engine moves. So one wake-up of the loop
a step remains, and what it costs no longer delays the next step.

Rejected: HTTP in several processes, each with caches of its own, or asking one for them: every hit
would pay for what only misses need. Shared memory with a ring: a frame a step over a socket is some
10 KB and 30 µs, of milliseconds.

When the process ends (killed, out of memory, its GPU lost), what it was answering fails with 500,
each caller told its own id, what comes is refused with 503, caches and other models answer on, and
it is started again, later and later if that does not help. One that hangs is killed (watch.py).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from engine.answering import answerer_over
from engine.contract import Answerer, AnswerError, Call, Failed, Overloaded, Trail
from engine.mailbox import Mailbox
from gateway.backend import CannotLoad
from gateway.catalog import ModelCard
from gateway.engine_process.frames import (
    Ask,
    Beat,
    Cancel,
    FromEngine,
    Letters,
    Lost,
    Message,
    Progress,
    Ready,
    Refused,
    States,
    Stop,
    Told,
    frame,
    items_of,
)
from gateway.engine_process.spawn import Process
from gateway.engine_process.ticket import Ticket
from gateway.engine_process.watch import LOOK_EVERY_S, Bounds, Watch, step_bound
from gateway.observe.logs import Log
from gateway.observe.metrics import EngineState
from gateway.settings import Settings

BUILDER = "gateway.engine_backend:load_backend"
ENDING_S = 4.0
"""How long the process may take to end, whose callers have all been told so. With a grace of 30 s
and a step that hangs, the gateway is gone before a container's 40 s are over."""
DYING_S = 5.0
"""The same, when its line has ended already."""
LAST_LINES_S = 1.0
"""To read what an ended process said last."""
AGAIN_S = (0.0, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Before it is started again, by how many starts there were since its last answer."""
RETRY_AFTER_S = 5.0


class OwnProcess:
    """Starts the engine's process and loads it; `start` and the rest belong to one event loop."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        progress: Callable[[str], None],
        *,
        builder: str = BUILDER,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Returns when the models are loaded; raises CannotLoad. `clock` must be
        `time.monotonic`, but for tests: it is the other process's, too."""
        self._settings = _needed(settings)
        self._log = log
        self._progress = progress
        self._builder = builder
        self._bounds = bounds
        self._clock = clock
        self._numbers = itertools.count(1)
        self._tickets: dict[int, Ticket] = {}
        self._states: dict[str, EngineState] = {}
        self._transport: asyncio.Transport | None = None
        self._problem: str | None = "the engine's process is being started"
        self._why: str | None = None
        """It does not serve, or did not come back, as far as it was told."""
        self._lost: str | None = None
        self._stopping = False
        self._over = asyncio.Event()
        self._starts = 0
        self._work: set[asyncio.Task[None]] = set()
        self._device = ""
        self._watch = Watch(clock, bounds)
        self._process = self._spawn()
        self.cards: Mapping[str, ModelCard] = self._load()
        self.answerers: Mapping[str, Answerer] = {
            name: answerer_over(
                name,
                self._file(name),
                self._cancel,
                alive=lambda: self._transport is not None,
                clock=clock,
                wall=wall,
            )
            for name in self.cards
        }

    # ------------------------------------------------------------------------------ as a backend

    async def start(self) -> None:
        await self._attach()
        self._do(self._look_after())

    async def stop(self) -> None:
        """The process lets what it has end within its grace, and ends."""
        self._stopping = True
        for task in list(self._work):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._transport is None or self._problem is not None:
            self._process.kill()
        self._send(Stop())
        await asyncio.to_thread(self._process.reap, ENDING_S)
        if self._transport is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), LAST_LINES_S)

    def states(self) -> Mapping[str, EngineState]:
        """As of a tenth of a second ago; calls on their way there count as waiting."""
        coming = Counter(ticket.model for ticket in self._tickets.values())
        return {
            name: replace(state, waiting=coming[name])
            if coming[name] and not (state.running or state.waiting)
            else state
            for name, state in self._states.items()
        }

    def problem(self) -> str | None:
        return self._problem

    def lost(self) -> str | None:
        return self._lost

    def upstream_errors(self) -> Mapping[tuple[str, str], int]:
        return {}

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        return self._process.pid

    # -------------------------------------------------------------------------------- calls go over

    def _file(self, name: str) -> Callable[[Call, Trail, Mailbox], Coroutine[Any, Any, Ticket]]:
        async def file(call: Call, trail: Trail, mailbox: Mailbox) -> Ticket:
            if self._stopping:
                raise Overloaded(
                    "The engine is shutting down; try again soon.", retry_after_s=RETRY_AFTER_S
                )
            if self._problem is not None:
                raise Overloaded(
                    "The engine is being started again; try again soon.",
                    retry_after_s=RETRY_AFTER_S,
                )
            ticket = Ticket(next(self._numbers), name, trail.id, mailbox, self._clock())
            asked = Ask(
                ticket.number, name, call, trail.id, trail.tenant, trail.share,
                ticket.arrival, trail.deadline,
            )  # fmt: skip
            self._send(asked)
            self._tickets[ticket.number] = ticket
            return ticket

        return file

    def _cancel(self, ticket: Ticket) -> None:
        """Its last letter is still to come."""
        if ticket.number in self._tickets:
            self._send(Cancel(ticket.number))

    def _send(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(frame(message))

    # ----------------------------------------------------------------------------- events come back

    def _take(self, message: FromEngine) -> None:
        match message:
            case Beat():
                pass  # `_attach` has heard it
            case Letters():
                self._hand_out(message)
            case States():
                self._states = message.states
            case Told():
                said = {**message.event, "process": "engine"}
                self._log.log(_LEVELS[message.level], said.pop("event", ""), **said)
            case Progress():
                self._progress(message.text)
            case Ready():
                self._be_ready(message)
            case Refused():
                self._problem = self._why = message.text
            case Lost():
                self._problem = self._why = message.why
                self._process.kill()  # it may hang in its driver

    def _hand_out(self, letters: Letters) -> None:
        for letter in letters.letters:
            ticket = self._tickets.get(letter.number)
            if ticket is None:
                continue
            ticket.read(letter)
            if letter.usage is not None:
                del self._tickets[letter.number]
                self._starts = 0
            ticket.mailbox.put(items_of(letter))

    # ------------------------------------------------------------------------------ birth and death

    def _spawn(self) -> Process:
        """It computes where it did before: under `device = "auto"`, a GPU that is full or away for
        a moment would leave a gateway that is ready, and many times slower."""
        self._starts += 1
        settings = self._settings
        if settings.engine.device == "auto" and self._device:
            settings = replace(settings, engine=replace(settings.engine, device=self._device))
        return Process(settings, self._builder, lambda line: self._log.warning("engine", line=line))

    def _load(self) -> Mapping[str, ModelCard]:
        """Wait for Ready, without an event loop."""
        try:
            return self._cards_when_ready()
        except CannotLoad:
            self._process.hang_up()
            raise

    def _cards_when_ready(self) -> Mapping[str, ModelCard]:
        while messages := self._process.wait_for_messages():
            for message in messages:
                if isinstance(message, Ready):
                    self._problem, self._device = None, message.device
                    return message.cards
                if isinstance(message, Refused):
                    self._process.reap(DYING_S)
                    raise CannotLoad(message.text)
                self._take(message)
        raise CannotLoad(
            f"the engine's process ended while it loaded the models ({self._process.reap(DYING_S)})"
            "; what it said is in the log. SIGKILL means that memory ran out: lower "
            "engine.kv_memory_mib, or use smaller models."
        )

    def _be_ready(self, ready: Ready) -> None:
        """It was started again. What callers, caches and prices know of the models must hold."""
        self._device = ready.device
        if ready.cards != self.cards:
            self._lost = (
                "the models are not those that were served before: their files, or the memory for "
                "them, have changed"
            )
            self._problem = self._lost
            return
        self._problem = self._why = None
        self._log.info("engine", what="its process serves again", pid=self.pid)

    async def _attach(self) -> None:
        watch = self._watch = Watch(self._clock, self._bounds)

        def came(message: FromEngine) -> None:
            watch.heard()
            self._take(message)

        self._transport = await self._process.attach(came, self._line_ended)

    def _line_ended(self) -> None:
        self._transport = None
        tickets, self._tickets = list(self._tickets.values()), {}
        for ticket in tickets:
            ticket.mailbox.put([self._failed(ticket)])
        if self._stopping:
            self._over.set()
            return
        self._problem = self._again()
        self._states = {name: _none_of(state) for name, state in self._states.items()}
        self._do(self._start_again(", ".join(sorted(ticket.id for ticket in tickets))))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """Until it is done, or `stop`."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _failed(self, ticket: Ticket) -> AnswerError:
        """In its own words to each: who else was asking is no business of a tenant's (D27)."""
        if self._stopping:
            return Failed("The engine has stopped; try again when it is back.")
        return Failed(
            f"The engine's process ended while it answered request {ticket.id}. It is being "
            "started again; try again."
        )

    async def _look_after(self) -> None:
        """Kill what hangs. Its line is cut at once: who hangs in a driver may not end."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._transport is not None and (why := self._hangs()) is not None:
                self._problem = self._why = why
                self._process.kill()
                self._transport.abort()

    def _hangs(self) -> str | None:
        step_s = step_bound(self._settings.engine.step_timeout_s, self._device)
        return self._watch.look(
            self._tickets.values(), self._states, step_s, loading=self._problem is not None
        )

    async def _start_again(self, ids: str) -> None:
        how = await asyncio.to_thread(self._process.reap, DYING_S)
        self._log.error(
            "engine", what="its process ended", how=how, why=self._why, requests=ids,
            again_in_s=self._pause_s(),
        )  # fmt: skip
        await asyncio.sleep(self._pause_s())
        while (why := await self._start_once()) is not None:
            self._why = why
            self._problem = self._again()
            self._log.error(
                "engine", what="its process could not be started", why=why,
                again_in_s=self._pause_s(),
            )  # fmt: skip
            await asyncio.sleep(self._pause_s())

    def _again(self) -> str:
        why = f": {self._why}" if self._why else ""
        return f"the engine's process has ended and is being started again{why}"

    def _pause_s(self) -> float:
        return AGAIN_S[min(self._starts, len(AGAIN_S) - 1)]

    async def _start_once(self) -> str | None:
        """Why it could not be started, whatever that was: no memory, no file handles, no Python.
        What is missing now may be there at the next try."""
        before = self._process
        try:
            self._process = self._spawn()
            await self._attach()
        except Exception as error:  # noqa: BLE001 - see above
            if self._process is not before:
                self._process.kill()
                self._process.hang_up()
            return f"{type(error).__name__}: {error}"
        return None


_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


def _none_of(state: EngineState) -> EngineState:
    """Of an engine that is not there."""
    return EngineState(
        pages=dict.fromkeys(state.pages, 0), computed=dict.fromkeys(state.computed, 0)
    )


def _needed(settings: Settings) -> Settings:
    """What the engine's process has to know, and no more: no keys, no tenants."""
    models = {name: model for name, model in settings.models.items() if model.kind == "engine"}
    return Settings(models=models, engine=settings.engine, logs=settings.logs)
