"""The hand-over from the engine thread to its readers: one wake-up a step, for all requests.

    engine thread     Outbox ──▶ Office ──▶ Mailbox       an event loop of this process
                                       └──▶ a line        another process (gateway/engine_process/)

Waking an event loop from another thread costs a lock and a write to a pipe, about 15 µs. So the
engine thread collects a step's events in an `Outbox` and hands each office its mail with one call.

Each event costs the event loop some 25 µs on its way to the socket, under the interpreter lock that
the engine thread needs for its next step: 128 streams of a small model at 200 tokens a second were
more than one interpreter can carry. So where many stream, each gets an event at most every GAP_S
times their number, with all the tokens since; the first token and the end never wait. One stream
alone, or a few, get every token by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeAlias

from engine.contract import AnswerError, Delta, End, Event

Item: TypeAlias = Event | AnswerError

GAP_S = 150e-6
"""Between two events of all streams together."""
FEW = 8
"""Streams that are not held back."""


class Addressee(Protocol):
    """One request's reader, as the engine thread knows it."""

    due: float
    """When the next text may leave, on the engine's clock. The outbox's."""

    @property
    def office(self) -> Office: ...


class Office(Protocol):
    """Where the mail of several addressees is handed over at once. Hashable."""

    def deliver(self, mail: Mail) -> bool:
        """On the engine thread. False: its readers are gone."""
        ...


Mail: TypeAlias = list[tuple[Addressee, list[Item]]]


@dataclass(frozen=True, slots=True)
class LoopOffice:
    """The mailboxes of one event loop."""

    loop: asyncio.AbstractEventLoop

    def deliver(self, mail: Mail) -> bool:
        try:
            self.loop.call_soon_threadsafe(_hand_out, mail)
        except RuntimeError:  # it is closed
            return False
        return True


class Mailbox:
    """One request's events, on their way to its only reader. Made on the reader's event loop."""

    def __init__(self) -> None:
        self.office = LoopOffice(asyncio.get_running_loop())
        self.over = False
        """Whether the last has been taken."""
        self.due = 0.0
        self._items: deque[Item] = deque()
        self._filled = asyncio.Event()

    def put(self, items: Iterable[Item]) -> None:
        """On the event loop only."""
        self._items.extend(items)
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

    @property
    def is_here(self) -> bool:
        """Whether its event loop runs this. Not so for an answer that nobody closed and whose loop
        is gone: nothing can be waited for there."""
        try:
            return asyncio.get_running_loop() is self.office.loop
        except RuntimeError:
            return False

    async def empty(self) -> None:
        """Take and forget all there is, until the last."""
        with suppress(AnswerError):
            while not self.over:
                await self.take()


class Outbox:
    """A step's events, by request. Owned by the engine thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[Addressee, list[Item]] = {}

    def add(self, mailbox: Addressee, item: Item) -> None:
        """Send with the next flush, or a text with a later one."""
        self._held.setdefault(mailbox, []).append(item)
        if not isinstance(item, Delta):
            mailbox.due = 0.0

    def flush(self) -> list[Office]:
        """Hand over what is due; returns the offices whose readers are gone."""
        if not self._held:
            return []
        return [office for office, mail in self._due().items() if not office.deliver(mail)]

    def _due(self) -> dict[Office, Mail]:
        now = self._clock()
        later = now + GAP_S * max(0, len(self._held) - FEW)
        mail: dict[Office, Mail] = {}
        for mailbox in [mailbox for mailbox in self._held if mailbox.due <= now]:
            items = self._held.pop(mailbox)
            if len(items) > 1:
                items = _joined(items)
            mail.setdefault(mailbox.office, []).append((mailbox, items))
            mailbox.due = later
        return mail


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


def _hand_out(mail: Mail) -> None:
    for mailbox, items in mail:
        assert isinstance(mailbox, Mailbox)
        mailbox.put(items)
