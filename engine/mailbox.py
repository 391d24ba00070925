"""The hand-over from the engine thread to event loops: one wake-up a step, for all requests.

Waking an event loop from another thread costs a lock and a write to a pipe, about 15 µs. So the
engine thread collects a step's events in an `Outbox` and hands each loop its batch with one call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeAlias

from engine.contract import AnswerError, Event

Item: TypeAlias = Event | AnswerError


class Mailbox:
    """One request's events, on their way to its only reader. Made on the reader's event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._filled = asyncio.Event()

    def put(self, item: Item) -> None:
        """On the event loop only."""
        self._items.append(item)
        self._filled.set()

    async def take(self) -> Event:
        """The next event; raises the error that ended the answer."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        item = self._items.popleft()
        if isinstance(item, AnswerError):
            raise item
        return item


class Outbox:
    """A step's events, by event loop. Owned by the engine thread."""

    def __init__(self) -> None:
        self._batches: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Item]]] = {}

    def add(self, mailbox: Mailbox, item: Item) -> None:
        """Send with the next flush."""
        self._batches.setdefault(mailbox.loop, []).append((mailbox, item))

    def flush(self) -> list[asyncio.AbstractEventLoop]:
        """Hand everything over; returns the loops that are closed, whose readers are gone."""
        closed = []
        for loop, batch in self._batches.items():
            try:
                loop.call_soon_threadsafe(_deliver, batch)
            except RuntimeError:
                closed.append(loop)
        self._batches.clear()
        return closed


def _deliver(batch: list[tuple[Mailbox, Item]]) -> None:
    for mailbox, item in batch:
        mailbox.put(item)
