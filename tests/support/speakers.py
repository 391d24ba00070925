"""A model that speaks only when a test lets it, and requests as tasks that hear what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from inspect import isawaitable

from engine.contract import Answer, AnswerError, Call, End, Event, Start, Trail

PATIENCE_S = 120.0


class Generation:
    """One run of the fake model: says what it is told to, when it is told to."""

    def __init__(self, call: Call, trail: Trail) -> None:
        self.call = call
        self.trail = trail
        self.closed = False
        self._orders: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    async def say(self, *orders: Event | Exception | None) -> None:
        """None ends the stream. Returns when everyone has heard it who is going to."""
        for order in orders:
            self._orders.put_nowait(order)
        await settle()

    async def run(self) -> Answer:
        try:
            while (order := await self._orders.get()) is not None:
                if isinstance(order, Exception):
                    raise order
                yield order
        finally:
            self.closed = True


@dataclass
class Model:
    runs: list[Generation] = field(default_factory=list)

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        run = Generation(call, trail)
        self.runs.append(run)
        async with aclosing(run.run()) as answer:
            async for event in answer:
                yield event


class Listener:
    """A request as a task that hears what comes."""

    def __init__(self, answerer: Callable[[Call, Trail], Answer], call: Call, trail: Trail) -> None:
        self.trail = trail
        self.heard: list[Event] = []
        self.error: BaseException | None = None
        self.task = asyncio.create_task(self._listen(answerer, call))

    async def _listen(self, answerer: Callable[[Call, Trail], Answer], call: Call) -> None:
        try:
            async with aclosing(answerer(call, self.trail)) as answer:
                async for event in answer:
                    self.heard.append(event)
        except AnswerError as error:
            self.error = error

    async def hang_up(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        await settle()

    @property
    def start(self) -> Start:
        assert isinstance(self.heard[0], Start)
        return self.heard[0]

    @property
    def end(self) -> End:
        assert isinstance(self.heard[-1], End)
        return self.heard[-1]


async def settle() -> None:
    """Let every task run until none has anything to do but wait."""
    for _ in range(30):
        await asyncio.sleep(0)


async def eventually(true: Callable[[], object]) -> None:
    """Wait until `true()` is, or what it has to be awaited for; the limit ends a wait that would
    never end, and no more."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = true()
            if await found if isawaitable(found) else found:
                return
            await asyncio.sleep(0.005)
