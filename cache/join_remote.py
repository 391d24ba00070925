"""Identical requests at several gateways share one generation.

Problem. cache/join.py lets a gateway compute an answer once for all who ask it. Four gateways
behind a balancer still compute it four times, just when a question is popular.

Choice. Below the join, so once per gateway and flight, a call claims its flight in Redis:

    claim ─┬─ lease is free ─► lead     compute, pass on, publish (cache/shared_log.py)
           ├─ somebody leads ─► follow  read the leader's log from its beginning, then live
           └─ Redis is away ─► alone    compute as if there were no other gateway

- A claim is one round trip within the request's patience. Followers wait on purpose, so they have
  no such deadline: they give up when Redis leaves them without a reply (BLOCK_S) or the leader is
  silent (SILENCE_S, some three heartbeats, and the patience; its first post has to come sooner).
- The leader's answer does not depend on its log: what cannot be published is not, and followers
  notice.
- Who loses its leader claims again, naming the token that it lost: the first one to do so takes
  over, the others follow that one. After MAX_LEADERS it computes alone.
- What a follower has already passed on stands. The new answer has to begin with it, word for word,
  and is passed on from there (`Heard`). Greedy answers of one model nearly always do; where they do
  not, the answer ends with an error, as it would have for those at the gateway that died.
- A leader that fails, is cancelled or refuses says nothing of why: each follower asks for itself
  and hears its own reason.

Rejected: a lock with waiting (followers see nothing until the end); pub/sub (whoever comes late has
missed the beginning); followers that ask the leader's gateway over HTTP (gateways would have to
know each other, and be reachable).

Price: a round trip before each computed answer, some fifty posts a second for one that is being
written, whether or not anybody follows. An answer that nobody waits for at the leader's gateway
ends there, and a follower starts it again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from cache.key import key_of
from cache.shared_log import FlightNames, LogLost, Publisher, Windows, read_log
from cache.store.base import StoreFault
from cache.store.redis_line import RedisLine
from engine.contract import (
    Answer,
    Answerer,
    CacheStatus,
    Call,
    Decision,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Start,
    Trail,
    unroll,
)

MAX_LEADERS: Final = 3
_STORED: Final = frozenset({"exact", "semantic"})

# The holder's token, or nothing where the lease is ours now.
_CLAIM: Final = b"""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[2] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return false
"""


@dataclass(frozen=True, slots=True)
class _Claim:
    """What asking for the lease came to. `holder` is who leads, where that is another."""

    role: Literal["lead", "follow", "alone"]
    holder: bytes = b""


_ALONE: Final = _Claim("alone")
_LEAD: Final = _Claim("lead")
_Channel: TypeAlias = tuple[int, str]


class SharedJoin:
    """Wraps what computes (cache/exact.py's Record). `may_share` says which calls may share."""

    def __init__(
        self,
        line: RedisLine,
        inner: Answerer,
        *,
        may_share: Callable[[Call, Trail], bool],
        settle: Callable[[], Awaitable[None]],
        key: Callable[[Call], bytes] = key_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line = line
        self._lease_ms = int(Windows.of(line).lease_s * 1e3)
        self._inner = inner
        self._may_share = may_share
        self._key = key
        self._clock = clock
        self._publisher = Publisher(line, settle, clock=clock)

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        if not self._may_share(call, trail):
            async with aclosing(self._inner(call, trail)) as answer:
                async for event in answer:
                    yield event
            return
        names = FlightNames.of(self._key(call), trail.directives)
        token, heard = secrets.token_hex(8).encode(), Heard()
        claim = await self._claim(names, token)
        for _ in range(MAX_LEADERS):
            if claim.role != "follow":
                break
            try:
                async with aclosing(self._follow(names, claim.holder, trail, heard)) as answer:
                    async for event in answer:
                        yield event
            except LogLost:
                claim = await self._claim(names, token, lost=claim.holder)
            else:
                return
        computed = self._inner(call, trail)
        if claim.role == "lead":
            computed = self._lead(names, token, computed)
        rest = heard.go_on(computed) if heard.started else computed
        async with aclosing(computed), aclosing(rest):
            async for event in rest:
                yield event

    async def _claim(self, names: FlightNames, token: bytes, lost: bytes = b"") -> _Claim:
        claim = ("EVAL", _CLAIM, 1, names.lease, token, lost, self._lease_ms)
        try:
            [holder] = await self._line.ask(claim)
        except StoreFault:
            # It may have been heard all the same. Posts are fenced by the lease: if it is not
            # ours the first one says so, and if it is, nobody follows an empty log.
            return _LEAD if self._line.breaker.closed else _ALONE
        if holder is None:
            return _LEAD
        return _Claim("follow", holder) if isinstance(holder, bytes) else _ALONE

    async def _lead(self, names: FlightNames, token: bytes, computed: Answer) -> Answer:
        publication = self._publisher.begin(names, token)
        try:
            async with aclosing(computed):
                async for event in computed:
                    publication.say(event)
                    yield event
        finally:
            publication.close()

    async def _follow(
        self, names: FlightNames, holder: bytes, trail: Trail, heard: Heard
    ) -> Answer:
        log = read_log(self._line, names, holder, clock=self._clock)
        async with aclosing(heard.note(log)) as events:
            async for event in events:
                if isinstance(event, Start):
                    yield _as_joined(event, trail)
                elif isinstance(event, End):
                    yield End(replace(event.usage, computed_tokens=0))
                else:
                    yield event


def _as_joined(start: Start, trail: Trail) -> Start:
    """As cache/join.py tells it; a member for `exact` here replaces the outer one."""
    trail.cache.append(CacheStatus("exact", forward="miss", collapsed=True))
    trail.decisions.append(Decision("join", "followed", "another gateway computes this answer"))
    origin = start.origin if start.origin in _STORED else "joined"
    return replace(start, id=trail.id, origin=origin)


# --------------------------------------------------------------------------- going on


@dataclass(slots=True)
class Heard:
    """What a follower has passed on of an answer, in case that it has to go on with another one."""

    started: bool = False
    said: dict[_Channel, list[str]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)

    async def note(self, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
        """Pass `events` on from where the last source stopped, and remember them."""
        async for event in self.go_on(events):
            if isinstance(event, Start):
                self.started = True
            elif isinstance(event, Delta):
                self.said.setdefault((event.index, event.kind), []).append(event.payload)
            elif isinstance(event, Finish):
                self.finished.add(event.index)
            yield event

    async def go_on(self, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
        """`events` without the beginning that was passed on already. Raises Failed where that is
        not how they begin."""
        if not self.started:
            async for event in events:
                yield event
            return
        due = {channel: _Due(channel[1], list(parts)) for channel, parts in self.said.items()}
        finished = set(self.finished)
        async for event in events:
            for part in unroll(event):
                rest = _beyond(part, due, finished)
                if rest is not None:
                    yield rest


@dataclass(slots=True)
class _Due:
    """What one choice's text has to begin with: strings that are still to come, joined for text,
    one by one for tool calls, whose payloads are JSON each."""

    kind: str
    parts: list[str]

    def __post_init__(self) -> None:
        if self.kind != "tool":
            self.parts = ["".join(self.parts)]

    def take(self, payload: str) -> str:
        """What `payload` adds to it. Raises Failed where it says something else."""
        if not self.parts or not self.parts[0]:
            return payload
        expected = self.parts[0]
        common = min(len(expected), len(payload))
        whole = self.kind == "tool" and expected != payload
        if whole or expected[:common] != payload[:common]:
            raise _diverged()
        self.parts[:1] = [expected[common:]] if expected[common:] else []
        return payload[common:]

    @property
    def left(self) -> bool:
        return any(self.parts)


def _beyond(
    event: Start | Delta | Finish | End, due: dict[_Channel, _Due], finished: set[int]
) -> Event | None:
    """The event, what of it is new, or None."""
    if isinstance(event, Start):
        return None
    if isinstance(event, End):
        if finished or any(one.left for one in due.values()):
            raise _diverged()
        return event
    if isinstance(event, Finish):
        if any(one.left for (index, _), one in due.items() if index == event.index):
            raise _diverged()
        known = event.index in finished
        finished.discard(event.index)
        return None if known else event
    expected = due.get((event.index, event.kind))
    rest = event.payload if expected is None else expected.take(event.payload)
    if rest and event.index in finished:
        raise _diverged()
    if rest == event.payload:
        return event
    return replace(event, payload=rest, token_ids=(), logprobs=()) if rest else None


def _diverged() -> Failed:
    return Failed(
        "The gateway that computed this answer stopped, and the answer could not be continued word "
        "for word. Try the request again."
    )
