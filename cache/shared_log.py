"""One answer on its way from the gateway that computes it to others that wait for it.

    lease    sluice:1:{family}:l:flight          string: the leader's token; lives LEASE_S
    log      sluice:1:{family}:g:flight:token    stream of posts; lives LOG_S after the last

A post is a number and what was said since the one before; an empty one is a heartbeat. The log is
read from its beginning whenever one comes, as the log of cache/flight.py is.

What makes a log safe to serve from: posts are numbered, so that a gap is seen; the first carries
the call's whole key, so that nobody hears another call's answer; a post is added only while the
lease holds the leader's token, in one script, so that one who was thought dead says nothing more.
Whoever finds any of that broken, or hears nothing for SILENCE_S (and its patience with Redis),
treats the log as lost.

One `Publisher` serves all answers of a gateway: what they said within PACE_S goes out in one round
trip. A round that fails breaks the logs that were in it: a log with a gap is of no use.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from cache.replay import pack_body, unpack_body
from cache.store.base import StoreFault
from cache.store.redis_client import Command, is_refusal
from cache.store.redis_index import Family, member_of
from cache.store.redis_line import RedisLine
from engine.contract import Burst, Delta, Directives, End, Event, Finish, Start, Usage

BEAT_S: Final = 0.3
SILENCE_S: Final = 1.0
FIRST_S: Final = 0.5
"""A leader posts as soon as it has claimed, whether or not it has anything to say."""
LEASE_S: Final = 1.0
LOG_S: Final = 10.0
PACE_S: Final = 0.02
BLOCK_S: Final = 0.05
TICK_S: Final = 0.15
"""A follower asks for news of the next BLOCK_S. Redis ends a wait without news only at a tick of
its clock, 100 ms apart at its default `hz 10`: whoever has no reply after that, and the patience on
top, leaves Redis alone."""
MAX_UNSENT: Final = 4_096
"""Events that may wait to be published; more means that Redis does not keep up."""
_SETTLE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Windows:
    """How long who waits for how much. A post takes as long as Redis takes to answer, so whoever
    has more patience with Redis waits longer before it takes a leader for lost."""

    silence_s: float
    first_s: float
    lease_s: float
    log_s: float

    @classmethod
    def of(cls, line: RedisLine) -> Windows:
        more = line.patience_s
        return cls(SILENCE_S + more, FIRST_S + more, LEASE_S + more, LOG_S + more)


_POST: Final = b"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('XADD', KEYS[2], '*', 'p', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
"""
_RELEASE: Final = b"""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class LogLost(Exception):
    """Nothing more will come from this log, or nothing that may be believed."""


@dataclass(frozen=True, slots=True)
class FlightNames:
    """The names of what belongs to one flight: one call, asked with one max-age."""

    key: bytes
    lease: bytes
    log_prefix: bytes

    @classmethod
    def of(cls, key: bytes, asked: Directives) -> FlightNames:
        """Those who take answers of different ages, or of different certainty, do not meet."""
        prefix = Family.of(key).prefix
        takes = repr((asked.max_age_s, asked.max_error)).encode()
        flight = hashlib.sha256(member_of(key) + takes).hexdigest().encode()
        return cls(key, prefix + b"l:" + flight, prefix + b"g:" + flight + b":")

    def log(self, token: bytes) -> bytes:
        return self.log_prefix + token


# --------------------------------------------------------------------------- posts


class _Post(msgspec.Struct, array_like=True, frozen=True):
    number: int
    key: bytes
    """Of the first post; others leave it empty."""
    start: tuple[str, int, str, str] | None
    body: bytes
    end: tuple[int, int, int, int] | None
    lost: bool


_packer = msgspec.msgpack.Encoder()
_reader = msgspec.msgpack.Decoder(_Post)


def _pack(number: int, key: bytes, events: list[Event], lost: bool) -> bytes:
    start: tuple[str, int, str, str] | None = None
    end: tuple[int, int, int, int] | None = None
    middle: list[Delta | Finish] = []
    for event in events:
        if isinstance(event, Start):
            start = (event.id, event.created, event.model, event.origin)
        elif isinstance(event, End):
            one = event.usage
            end = (
                one.prompt_tokens, one.completion_tokens, one.cached_tokens, one.computed_tokens
            )  # fmt: skip
        else:
            middle.extend(event.read() if isinstance(event, Burst) else (event,))
    body = pack_body(middle) if middle else b""
    return _packer.encode(_Post(number, key, start, body, end, lost))


def _events_of(post: _Post) -> list[Event]:
    events: list[Event] = [] if post.start is None else [Start(*post.start)]
    if post.body:
        events += unpack_body(post.body)
    if post.end is not None:
        events.append(End(Usage(*post.end)))
    return events


# --------------------------------------------------------------------------- writing


@dataclass(slots=True, eq=False)
class Publication:
    """The leader's end of one log. `say` and `close` only put down what is to be sent."""

    names: FlightNames
    token: bytes
    windows: Windows
    wake: asyncio.Event
    unsent: list[Event] = field(default_factory=list)
    number: int = 0
    sent_at: float = float("-inf")
    state: Literal["open", "ended", "lost", "broken"] = "open"
    told: bool = False
    """The last post is under way: how the answer ended, and all of it."""

    def say(self, event: Event) -> None:
        if self.state != "open":
            return
        self.unsent.append(event)
        if isinstance(event, End):
            self.state = "ended"
        elif len(self.unsent) > MAX_UNSENT:
            self.state = "broken"
        self.wake.set()

    def close(self) -> None:
        """An answer that closes without its End is lost to those who follow."""
        if self.state == "open":
            self.state = "lost"
            self.wake.set()

    def next_post(self) -> Command:
        key = b"" if self.number else self.names.key
        post = _pack(self.number, key, self.unsent, self.state == "lost")
        self.number += 1
        self.unsent = []
        self.told = self.state != "open"
        log = self.names.log(self.token)
        lease_ms, log_ms = int(self.windows.lease_s * 1e3), int(self.windows.log_s * 1e3)
        return ("EVAL", _POST, 2, self.names.lease, log, self.token, post, lease_ms, log_ms)

    def release(self) -> Command:
        return ("EVAL", _RELEASE, 1, self.names.lease, self.token)


class Publisher:
    """Sends what all publications of this gateway have to say. Runs only while there are any.

    `settle` returns when the answers that ended are stored: only then is a lease given up, so that
    whoever comes finds the lease and its log, or the stored answer.
    """

    def __init__(
        self,
        line: RedisLine,
        settle: Callable[[], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line = line
        self._windows = Windows.of(line)
        self._settle = settle
        self._clock = clock
        self._wake = asyncio.Event()
        self._open: list[Publication] = []
        self._task: asyncio.Task[None] | None = None
        self._releases: set[asyncio.Task[None]] = set()
        line.before_close(self.close)

    def begin(self, names: FlightNames, token: bytes) -> Publication:
        publication = Publication(names, token, self._windows, self._wake)
        self._open.append(publication)
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_on(), name="publisher")
        return publication

    async def close(self) -> None:
        tasks = [task for task in (self._task, *self._releases) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_on(self) -> None:
        while self._open:
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._wake.wait()
            self._wake.clear()
            await self._send_round()
            await asyncio.sleep(PACE_S)

    async def _send_round(self) -> None:
        now = self._clock()
        due = [one for one in self._open if self._is_due(one, now)]
        posts = [one.next_post() for one in due]
        try:
            replies: list[Any] = await self._line.work(*posts) if posts else []
        except StoreFault:
            replies = [0] * len(posts)
        for one, reply in zip(due, replies, strict=True):
            one.sent_at = now
            if reply != 1:
                one.state = "broken"
        for one in [one for one in self._open if one.told or one.state == "broken"]:
            self._open.remove(one)
            self._start_release(one)

    def _is_due(self, one: Publication, now: float) -> bool:
        if one.state == "broken":
            return False
        return bool(one.unsent) or one.state != "open" or now - one.sent_at >= BEAT_S

    def _start_release(self, one: Publication) -> None:
        release = asyncio.create_task(self._release(one), name="lease-release")
        self._releases.add(release)
        release.add_done_callback(self._releases.discard)

    async def _release(self, one: Publication) -> None:
        if one.state == "ended":
            with suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_S):
                    await self._settle()
        with suppress(StoreFault):  # it runs out by itself
            await self._line.work(one.release())


# --------------------------------------------------------------------------- reading


async def read_log(
    line: RedisLine,
    names: FlightNames,
    token: bytes,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Event]:
    """The answer's events from the first to its End. Raises LogLost when they stop before that."""
    position: bytes = b"0-0"
    number, heard_at, windows = 0, clock(), Windows.of(line)
    while True:
        posts = await _next_posts(line, names.log(token), position)
        if not posts and clock() - heard_at > (windows.silence_s if number else windows.first_s):
            raise LogLost("The leader fell silent.")
        for identity, raw in posts:
            post = _checked(raw, number, names.key)
            position, number, heard_at = identity, number + 1, clock()
            for event in _events_of(post):
                yield event
            if post.end is not None:
                return


async def _next_posts(line: RedisLine, log: bytes, position: bytes) -> list[tuple[bytes, bytes]]:
    if not line.breaker.closed:
        raise LogLost("Redis does not answer.")
    read = ("XREAD", "BLOCK", int(BLOCK_S * 1e3), "STREAMS", log, position)
    try:
        [reply] = await line.wait_for(read, timeout_s=BLOCK_S + TICK_S + line.patience_s)
    except StoreFault as error:
        raise LogLost(str(error)) from error
    if is_refusal(reply):
        raise LogLost(str(reply))
    return [(identity, fields.get(b"p", b"")) for identity, fields in reply[0][1]] if reply else []


def _checked(raw: bytes, number: int, key: bytes) -> _Post:
    try:
        post = _reader.decode(raw)
        unpack_body(post.body or b"\x90")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LogLost("A post cannot be read.") from error
    if post.lost or post.number != number or post.key != (b"" if number else key):
        raise LogLost("The leader gave up, or a post is missing.")
    return post
