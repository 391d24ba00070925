"""Told to every gateway, in order, and the question whether this one has heard it all.

Problem. Each gateway holds in memory what lies in the store they share. What one of them purges
must not be served from the memory of another: within a second, and also when that other has lost
its line to Redis and cannot be told.

Choice. Messages go through a stream, which unlike pub/sub can be read again from where one stopped.
Each gateway follows it with a blocking read that returns at least every BLOCK_S, news or not. Each
return proves that all messages up to its asking were heard; memory is trusted for TRUST_S after
that (`in_touch`) and not served from any longer. So the promise needs no working line, only a
clock:

    purge ─► stream ─► read within BLOCK_S ─► forgotten          line in order: milliseconds
    purge ─► stream ─ ✗ ─ no read returns ─► not trusted         line cut: ≤ TRUST_S < 1 s

A gateway that comes back reads on where it stopped, does what it was told meanwhile, and trusts the
rest of its memory again. When it cannot know what it missed (the stream was cut at its length, or
is gone), it is told `everything`: to forget all. An epoch beside the stream tells of a flush: it
goes with all the rest, is set anew by whoever misses it first, and a changed epoch empties memories
too: who flushes Redis means the caches.

When Redis is full it takes no new message but lets keys be deleted: a message that must be heard
then deletes the epoch, and everyone forgets everything.

Rejected: pub/sub (a purge during a reconnect is lost, unnoticed); serving from memory while the
line is cut (an answer that somebody asked to erase would go on being given, for as long as the
fault lasts); short TTLs in memory (half a second is no cache).

Price: five small reads a second; while Redis is away nothing is served from memory either.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from cache.store.base import StoreFault
from cache.store.redis_client import Command, is_refusal
from cache.store.redis_line import RedisLine

TRUST_S: Final = 0.8
BLOCK_S: Final = 0.2
KEPT: Final = 10_000
"""Messages that the stream keeps for those who were away."""
_BEGINNING: Final = b"0-0"
_END: Final = b"%d-0" % (1 << 62)
_ANSWER_S: Final = 0.5
_RETRY_S: Final = 0.1
_AT_ONCE: Final = 1_000

T = TypeVar("T")

_Entry: TypeAlias = tuple[bytes, dict[bytes, bytes]]

_packer = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Topic(Generic[T]):
    """What a feed is about. `reader` reads (sender, message); `everything` is told to who may have
    missed something, and `nothing` means nothing to anybody."""

    name: bytes
    reader: msgspec.msgpack.Decoder[tuple[str, T]]
    everything: T
    nothing: T

    @property
    def stream(self) -> bytes:
        return b"sluice:1:{%s}:stream" % self.name

    @property
    def epoch(self) -> bytes:
        return b"sluice:1:{%s}:epoch" % self.name


class Feed(Generic[T]):
    """See the head of this file. Subscribers are told of other gateways' messages, not our own."""

    def __init__(
        self,
        line: RedisLine,
        topic: Topic[T],
        *,
        clock: Callable[[], float] = time.monotonic,
        trust_s: float = TRUST_S,
    ) -> None:
        self._line = line
        self._answer_s = max(_ANSWER_S, line.patience_s)
        self._topic = topic
        self._clock = clock
        self._trust_s = trust_s
        self._own = secrets.token_hex(8)
        self._subscribers: list[Callable[[T], Awaitable[object]]] = []
        self._heard_at: float | None = None
        self._position: bytes | None = None
        """Id of the last message that was read; None before the first contact."""
        self._epoch: bytes | None = None
        self._away = True
        self._task: asyncio.Task[None] | None = None

    @property
    def in_touch(self) -> bool:
        """Whether every message up to a moment ago has been heard."""
        return self._heard_at is not None and self._clock() - self._heard_at <= self._trust_s

    def subscribe(self, subscriber: Callable[[T], Awaitable[object]]) -> None:
        self._subscribers.append(subscriber)

    async def open(self) -> None:
        """Begin to follow; returns at the first contact, or without it after a while."""
        if self._task is not None:
            return
        with suppress(StoreFault):
            await self._catch_up()
        self._task = asyncio.create_task(self._follow(), name=f"feed-{self._topic.name.decode()}")

    async def close(self) -> None:
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        self._heard_at = None

    async def publish(self, message: T) -> None:
        """Tell the others what must be heard. Raises StoreFault when they cannot be told."""
        [added] = await self._line.work(self.telling(message))
        if not is_refusal(added):
            return
        [deleted] = await self._line.work(("DEL", self._topic.epoch))
        if deleted != 1:
            raise StoreFault(f"Redis does not take the message to the other gateways: {added}")

    def telling(self, message: T) -> Command:
        """The command that tells the others, for whom it is enough to try."""
        packed = _packer.encode((self._own, message))
        return ("XADD", self._topic.stream, "MAXLEN", "~", KEPT, "*", "w", packed)

    # ------------------------------------------------------------------ following

    async def _follow(self) -> None:
        while True:
            try:
                await (self._catch_up() if self._away else self._read_on())
            except StoreFault:
                self._away = True
                await asyncio.sleep(_RETRY_S)

    async def _catch_up(self) -> None:
        """After a time without contact: find out whether the place where we stopped still is."""
        oldest, newest = await self._ends()
        if newest == _BEGINNING:  # an empty stream could not be told from one that was lost
            await self._line.wait_for(self.telling(self._topic.nothing), timeout_s=self._answer_s)
            oldest, newest = await self._ends()
        if self._position is None or _number(oldest) > _number(self._position):
            self._position = newest
            self._epoch = await self._current_epoch()
            await self._tell(self._topic.everything)
        self._away = False
        await self._read_on(block_s=0.001)

    async def _ends(self) -> tuple[bytes, bytes]:
        """Ids of the oldest and the newest message there is."""
        first, last = await self._ask(
            ("XRANGE", self._topic.stream, "-", "+", "COUNT", 1),
            ("XREVRANGE", self._topic.stream, "+", "-", "COUNT", 1),
        )
        return (first[0][0], last[0][0]) if first and last else (_END, _BEGINNING)

    async def _read_on(self, block_s: float = BLOCK_S) -> None:
        assert self._position is not None
        epoch = await self._current_epoch()
        # Not when the reply is read here: this loop may have stood still since Redis sent it.
        asked_at = self._clock()
        blocking = ("COUNT", _AT_ONCE, "BLOCK", max(1, int(block_s * 1e3)))
        read = ("XREAD", *blocking, "STREAMS", self._topic.stream, self._position)
        [reply] = await self._ask(read, extra_s=block_s)
        if epoch != self._epoch:
            self._epoch = epoch
            await self._tell(self._topic.everything)
        messages = _messages(reply)
        for identity, fields in messages:
            self._position = identity
            await self._apply(fields)
        if len(messages) < _AT_ONCE:
            self._heard_at = asked_at

    async def _current_epoch(self) -> bytes | None:
        """The epoch, made if there is none. None where Redis is too full to make one."""
        [epoch] = await self._ask(("GET", self._topic.epoch))
        if epoch is None:
            new = secrets.token_hex(8)
            _, epoch = await self._line.wait_for(
                ("SET", self._topic.epoch, new, "NX"),
                ("GET", self._topic.epoch),
                timeout_s=self._answer_s,
            )
        return epoch if isinstance(epoch, bytes) else None

    async def _apply(self, fields: dict[bytes, bytes]) -> None:
        try:
            sender, message = self._topic.reader.decode(fields.get(b"w", b""))
        except msgspec.DecodeError:
            # It may have meant anything.
            sender, message = "", self._topic.everything
        if sender != self._own:
            await self._tell(message)

    async def _tell(self, message: T) -> None:
        for subscriber in self._subscribers:
            with suppress(StoreFault):
                await subscriber(message)

    async def _ask(self, *commands: Command, extra_s: float = 0.0) -> list[Any]:
        replies = await self._line.wait_for(*commands, timeout_s=self._answer_s + extra_s)
        refused = [reply for reply in replies if is_refusal(reply)]
        if refused:
            raise StoreFault(f"Redis refuses the stream of messages: {refused[0]}")
        return replies


def _messages(reply: Any) -> list[_Entry]:
    """Of XREAD on one stream; None where nothing came."""
    return list(reply[0][1]) if reply else []


def _number(identity: bytes) -> tuple[int, int]:
    ms, _, sequence = identity.partition(b"-")
    return int(ms), int(sequence)
