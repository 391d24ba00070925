"""The hand-over from the engine thread to event loops: one wake-up a step, for all requests.

Waking an event loop from another thread costs a lock and a write to a pipe, about 15 µs. So the
engine thread collects a step's events in an `Outbox` and hands each loop its batch with one call.

Each event costs the event loop some 25 µs on its way to the socket, under the interpreter lock that
the engine thread needs for its next step: 128 streams of a small model at 200 tokens a second were
more than one interpreter can carry. So where many stream, each gets an event at most every GAP_S
times their number, with all the tokens since; the first token and the end never wait. One stream
alone, or a few, get every token by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from typing import TypeAlias

from engine.contract import AnswerError, Delta, End, Event

Item: TypeAlias = Event | AnswerError

GAP_S = 150e-6
"""Between two events of all streams together."""
FEW = 8
"""Streams that are not held back."""


class Mailbox:
    """One request's events, on their way to its only reader. Made on the reader's event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.over = False
        """Whether the last has been taken."""
        self.due = 0.0
        """When the next text may leave, on the engine's clock. The outbox's."""
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
        self.over = isinstance(item, AnswerError | End)
        if isinstance(item, AnswerError):
            raise item
        return item

    async def empty(self) -> None:
        """Take and forget all there is, until the last."""
        with suppress(AnswerError):
            while not self.over:
                await self.take()


class Outbox:
    """A step's events, by request. Owned by the engine thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[Mailbox, list[Item]] = {}

    def add(self, mailbox: Mailbox, item: Item) -> None:
        """Send with the next flush, or a text with a later one."""
        self._held.setdefault(mailbox, []).append(item)
        if not isinstance(item, Delta):
            mailbox.due = 0.0

    def flush(self) -> list[asyncio.AbstractEventLoop]:
        """Hand over what is due; returns the loops that are closed, whose readers are gone."""
        if not self._held:
            return []
        closed = []
        for loop, batch in self._due().items():
            try:
                loop.call_soon_threadsafe(_deliver, batch)
            except RuntimeError:
                closed.append(loop)
        return closed

    def _due(self) -> dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Item]]]:
        now = self._clock()
        later = now + GAP_S * max(0, len(self._held) - FEW)
        batches: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Item]]] = {}
        for mailbox in [mailbox for mailbox in self._held if mailbox.due <= now]:
            items = self._held.pop(mailbox)
            batch = batches.setdefault(mailbox.loop, [])
            batch += [(mailbox, item) for item in (items if len(items) == 1 else _joined(items))]
            mailbox.due = later
        return batches


def _joined(items: list[Item]) -> list[Item]:
    """The same with neighbouring texts of one choice as one."""
    joined: list[Item] = []
    for index, run in groupby(items, key=_choice_of):
        parts = list(run)
        if index is None or len(parts) == 1:
            joined += parts
            continue
        texts = [part for part in parts if isinstance(part, Delta)]
        joined.append(
            Delta(
                index,
                "text",
                "".join(text.payload for text in texts),
                tuple(token for text in texts for token in text.token_ids),
                tuple(one for text in texts for one in text.logprobs),
            )
        )
    return joined


def _choice_of(item: Item) -> int | None:
    return item.index if isinstance(item, Delta) and item.kind == "text" else None


def _deliver(batch: list[tuple[Mailbox, Item]]) -> None:
    for mailbox, item in batch:
        mailbox.put(item)
