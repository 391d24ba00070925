"""The engine's side: the main program of the process that spawn.py starts.

    reader        the line ─▶ Ask ─▶ (thread: render, tokenise) ─▶ submit,  Cancel, Stop
    engine thread ─▶ one frame a step, on the line
    main thread   loads, then tells ten times a second what changed in the engine's figures
    beat          every second, so that the gateway knows that this process runs (watch.py)

There is no event loop here: between a call's frame and the engine's inbox stands one thread that
tokenises. Texts are made here, too, by the engine thread, since stop strings end sequences: about
a tenth of what a step costs the host (ARCHITECTURE.md, D40).

The line is also the leash. When the gateway's process ends, however it ends, reading the line ends,
and so does this process, at once and from the reader's thread, whatever the others are doing.
Signals for the whole process group (Ctrl-C, a service manager's) are left to the gateway, which
drains first.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

from engine.contract import AnswerError, Failed, Trail, Usage
from engine.engine import TOKENISING_THREADS
from engine.mailbox import Item, Mail, Office
from engine.request import Request
from gateway.backend import CannotLoad
from gateway.engine_process.frames import (
    Ask,
    Beat,
    Begin,
    FromGateway,
    Letter,
    Letters,
    Lost,
    Progress,
    Ready,
    Refused,
    Splitter,
    States,
    Stop,
    Told,
    letter,
    read_from_gateway,
)
from gateway.engine_process.sender import Sender
from gateway.observe.logs import Log, build_relay
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.engine_backend import EngineBackend

STATES_EVERY_S = 0.1
BEAT_EVERY_S = 1.0
LAST_WORDS_S = 2.0
PIECE = 1 << 18

Builder: TypeAlias = "Callable[[Settings, Log, Callable[[str], None]], EngineBackend]"


class Slot:
    """One call of the gateway's, as the engine's addressee."""

    __slots__ = ("cancelled", "due", "number", "office", "request", "told")

    def __init__(self, number: int, office: Office) -> None:
        self.number = number
        self.office = office
        self.due = 0.0
        self.request: Request | None = None
        self.cancelled = False
        self.told = False
        """Whether the times of its request have been."""

    def computed(self) -> Usage:
        """Of an answer that was cut; on the engine thread."""
        return Usage(0, 0) if self.request is None else self.request.computed()


class Desk:
    """Files the gateway's calls with the engine, and posts what becomes of them. An office."""

    def __init__(self, backend: EngineBackend, sender: Sender) -> None:
        self._engine = backend.engine
        self._sender = sender
        self._open: dict[int, Slot] = {}
        self._tokenising = ThreadPoolExecutor(TOKENISING_THREADS, "tokenise")

    def ask(self, asked: Ask) -> None:
        """On the reader's thread, as `cancel`."""
        slot = self._open[asked.number] = Slot(asked.number, self)
        self._tokenising.submit(self._file, asked, slot)

    def cancel(self, number: int) -> None:
        """Its last letter tells what was computed; it may be on its way already."""
        slot = self._open.get(number)
        if slot is None:
            return
        slot.cancelled = True
        if slot.request is not None:
            self._engine.cancel(slot.request)

    def _file(self, asked: Ask, slot: Slot) -> None:
        try:
            self._submit(asked, slot)
        except AnswerError as error:
            self.deliver([(slot, [error])])
        except Exception as error:  # noqa: BLE001 - a broken call must not end the engine
            sys.excepthook(type(error), error, error.__traceback__)
            failed = f"The engine failed ({type(error).__name__}) on request {asked.id}; try again."
            self.deliver([(slot, [Failed(failed)])])

    def _submit(self, asked: Ask, slot: Slot) -> None:
        trail = Trail(asked.id, asked.tenant, share=asked.share, deadline=asked.deadline)
        if slot.cancelled:
            raise Failed("The request was given up.")
        request = self._engine.prepare(asked.model, asked.call, trail, slot, asked.arrival)
        slot.request = request
        self._engine.submit(request)
        if slot.cancelled:  # meanwhile, and perhaps before it was submitted
            self._engine.cancel(request)

    def deliver(self, mail: Mail) -> bool:
        """One frame for all. On the engine thread, or a tokenising one for what is not queued."""
        letters = [
            self._letter(slot, items)
            for slot, items in mail
            if isinstance(slot, Slot) and slot.number in self._open
        ]
        if letters:
            self._sender.send(Letters(letters))
        return True

    def _letter(self, slot: Slot, items: list[Item]) -> Letter:
        times: tuple[float | None, float | None] | None = None
        if slot.request is not None and not slot.told:
            slot.told = True
            times = slot.request.admitted, slot.request.first_token
        written = letter(slot.number, items, slot.computed, times)
        if written.usage is not None:
            self._open.pop(slot.number, None)
        return written


class Child:
    """This process: `run` returns its exit status."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._sender = Sender(line)
        self._begin: queue.SimpleQueue[Begin] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._desk: Desk | None = None

    def run(self, build: Builder) -> int:
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        settings = self._begin.get().settings
        log = build_relay(self._tell, settings.logs.level)
        try:
            backend = build(settings, log, lambda text: self._sender.send(Progress(text)))
        except CannotLoad as error:
            self._sender.send(Refused(str(error)))
            self._sender.drain(LAST_WORDS_S)
            return 2
        gc.collect()
        gc.freeze()  # what is here now stays, as in gateway/server.py
        gc.set_threshold(2_000, 20, 500)
        asyncio.run(backend.start())
        self._desk = Desk(backend, self._sender)
        self._sender.send(States(dict(backend.states())))
        self._sender.send(Ready(dict(backend.cards), backend.device))
        lost = self._tell_states(backend)
        asyncio.run(backend.stop())
        if lost is not None:
            self._sender.send(Lost(lost))
        self._sender.drain(LAST_WORDS_S)
        return 0 if lost is None else 1

    def _tell(self, level: str, event: Mapping[str, Any]) -> None:
        """A line for the gateway's log."""
        plain = {
            name: value if isinstance(value, str | int | float | None) else repr(value)
            for name, value in event.items()
        }
        self._sender.send(Told(level, plain))

    def _tell_states(self, backend: EngineBackend) -> str | None:
        """Until it is over; why, if nobody asked for that."""
        told = None
        while not self._stop.wait(STATES_EVERY_S):
            states = dict(backend.states())
            if states != told:
                self._sender.send(States(states))
                told = states
            if (problem := backend.problem()) is not None:
                return problem
        return None

    def _beat(self) -> None:
        while True:
            self._sender.send(Beat())
            time.sleep(BEAT_EVERY_S)

    def _read(self) -> None:
        """The reader's thread, to the end of the line and of this process."""
        status = 0
        try:
            self._follow()
        except Exception:  # noqa: BLE001 - whatever it was, nobody reads the line any more
            sys.excepthook(*sys.exc_info())
            status = 1
        finally:
            os._exit(status)

    def _follow(self) -> None:
        splitter = Splitter()
        while piece := self._piece():
            for body in splitter.feed(piece):
                self._take(read_from_gateway(body))

    def _take(self, message: FromGateway) -> None:
        if isinstance(message, Begin):
            self._begin.put(message)
        elif isinstance(message, Stop):
            self._stop.set()
        else:
            assert self._desk is not None, "a call before Ready"
            if isinstance(message, Ask):
                self._desk.ask(message)
            else:
                self._desk.cancel(message.number)

    def _piece(self) -> bytes:
        try:
            return self._line.recv(PIECE)
        except OSError:
            return b""


def main(line: int, builder: str) -> int:
    """`line`: a file descriptor. `builder`: MODULE:FUNCTION, named by backend.py's caller."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    module, function = builder.split(":")
    build: Builder = getattr(importlib.import_module(module), function)
    return Child(socket.socket(fileno=line)).run(build)
