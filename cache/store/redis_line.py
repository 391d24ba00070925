"""The line to Redis: how long a request waits for it, and what becomes of its faults.

Problem. A cache beside the process may be slow, stopped, restarting, full, or no Redis at all, and
it is asked several times in the life of one request (a lookup, a second look, a claim in
cache/join_remote.py). If each call had its own deadline, a request would pay their sum; if each
failure were waited for, a dead Redis would slow down every request for as long as it is dead.

Choice. Some bounds, in one place through which every call goes:

- Patience. A request has `patience_s` (25 ms) for all its calls together. `begin_request` hands it
  out; a context variable carries it into the tasks that work for the request, which spend from the
  same purse. Who comes without one (tests, a background task) has `patience_s` for each call.
- Breaker (cache/store/breaker.py). After a few calls without an answer nobody asks any more. A
  background task tries until it is answered in time again; no request pays for the trial.
- Lag (cache/store/lag.py). A call counts against Redis where it had half of the patience to answer
  in. Where this process was too late to read the answer (StoreLate) the request goes on without it
  all the same, and nothing is said of Redis.
- Whoever stops waiting leaves the call running, for STRAGGLER_S. Otherwise each give-up would
  close a connection, and to open one takes longer than an answer: where that takes longer than the
  patience (TLS, another zone) there would never be a connection at all.

An error that Redis answers with (OOM, WRONGTYPE) is returned among the replies, not raised: the
server is alive, and whether it matters is the caller's affair. Whatever else is raised by the
client library becomes StoreFault here.

Rejected: the library's own retries and socket timeouts (they multiply, and end in seconds); a
deadline per call; a breaker without background trial (one request in each period pays).

Price: a task per call, about 15 µs; up to `connections` calls that nobody waits for any more.

What waits on purpose (blocking reads) has a client of its own, so that it takes no connection from
those in a hurry, and neither asks the breaker nor tells it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cache.store.base import StoreAway, StoreFault, StoreLate
from cache.store.breaker import Breaker
from cache.store.lag import Lag
from cache.store.redis_client import STRAGGLER_S, Client, Command, close, connect, round_trip
from engine.contract import Answer, Answerer, Call, Trail

PATIENCE_S: Final = 0.025
WORK_S: Final = 1.0
"""For what nobody waits for: writes, purges. Never less than what a request has."""
PATIENT_CONNECTIONS: Final = 256
_TURNS: Final = 4
"""From a socket that can be read to a task that is done."""

OnEvent: TypeAlias = Callable[[str], None]


@dataclass(slots=True)
class _Purse:
    """What one request may still wait for Redis, and how long Redis has had for it."""

    left_s: float
    fair_s: float = 0.0


_purse: ContextVar[_Purse | None] = ContextVar("patience with Redis", default=None)
"""Set by `begin_request`. A context variable has to be made once: contexts never forget one."""


class RedisLine:
    """See the head of this file. Belongs to one event loop; owns its client."""

    def __init__(
        self,
        url: str,
        *,
        patience_s: float = PATIENCE_S,
        connections: int = 32,
        clock: Callable[[], float] = time.monotonic,
        breaker: Breaker | None = None,
        on_event: OnEvent = lambda _text: None,
        connect: Callable[[str, int], Client] = connect,
    ) -> None:
        self._url = url
        self.patience_s = patience_s
        self._work_s = max(WORK_S, patience_s)
        self._straggler_s = max(STRAGGLER_S, patience_s)
        self._connections = connections
        self._clock = clock
        self._on_event = on_event
        self._connect = connect
        self._client: Client | None = None
        self._patient: Client | None = None
        self._calls: set[asyncio.Task[list[Any]]] = set()
        self._probe: asyncio.Task[None] | None = None
        self._before_close: list[Callable[[], Awaitable[None]]] = []
        self.breaker = breaker or Breaker(clock)
        self.faults = 0
        self.late = 0
        """Calls that were given up because this process was late itself."""

    async def open(self) -> None:
        """Make the client, and a first connection if somebody answers. Redis being away is not an
        error: it may come later."""
        if self._client is not None:
            return
        self._client = self._connect(self._url, self._connections)
        self._patient = self._connect(self._url, PATIENT_CONNECTIONS)
        with suppress(StoreFault):
            await self._send((("PING",),), self._work_s)

    async def close(self) -> None:
        if self._client is None:
            return
        for finish in self._before_close:
            await finish()
        tasks = [task for task in (*self._calls, self._probe) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close(self._client)
        await close(self._patient)
        self._client = self._patient = None

    def before_close(self, finish: Callable[[], Awaitable[None]]) -> None:
        """For what works over this line in the background and has to end before it."""
        self._before_close.append(finish)

    # ------------------------------------------------------------------ asking

    def begin_request(self) -> None:
        """From here on this task, and the tasks it starts, spend from one purse."""
        _purse.set(_Purse(self.patience_s))

    async def ask(self, *commands: Command) -> list[Any]:
        """The replies, within the request's patience; a refused command's is a ResponseError.

        Raises StoreFault: at once where no patience is left, or (StoreAway) the breaker is open;
        StoreLate where it was spent on this process.
        """
        self._require_closed_breaker()
        purse = _purse.get() or _Purse(self.patience_s)
        if purse.left_s <= 0:
            raise self._unanswered("The request has no time left for Redis.", purse.fair_s)
        waits_s, started, lag = purse.left_s, self._clock(), Lag(self.patience_s, self._clock)
        call = asyncio.create_task(self._exchange(commands))
        self._calls.add(call)
        call.add_done_callback(self._end_call)
        try:
            await asyncio.wait((call,), timeout=waits_s)
            await _turns(call)
        finally:
            purse.left_s -= self._clock() - started
            purse.fair_s += lag.stop()
        if call.done():
            return self._settle(call)
        fault = self._unanswered(
            f"No answer from Redis within {waits_s * 1e3:.0f} ms.", purse.fair_s
        )
        if not isinstance(fault, StoreLate):
            # What it had in earlier calls of the request, it used to answer them.
            self._book_failure(str(fault), lag.stop() > self.patience_s / 2)
        raise fault

    async def work(self, *commands: Command) -> list[Any]:
        """As `ask`, for what no request waits for."""
        self._require_closed_breaker()
        return await self._send(commands, self._work_s)

    async def wait_for(self, *commands: Command, timeout_s: float) -> list[Any]:
        """As `work`, on a connection for those who wait, and whatever the breaker says."""
        if self._patient is None:
            raise StoreFault("The line to Redis is not open.")
        try:
            async with asyncio.timeout(timeout_s):
                return await round_trip(self._patient, commands)
        except Exception as error:
            raise StoreFault(f"Redis failed: {str(error) or type(error).__name__}.") from error

    async def scan(self, pattern: bytes, kind: str) -> AsyncIterator[bytes]:
        """Keys of one Redis type, on all nodes. Takes as long as Redis has keys, if each step is
        answered in time."""
        self._require_closed_breaker()
        keys = self._require_open().scan_iter(match=pattern, count=1000, _type=kind)
        try:
            while True:
                async with asyncio.timeout(self._work_s):
                    key = await anext(keys, None)
                if key is None:
                    return
                yield key
        except Exception as error:
            raise self._failed(error) from error

    def _require_open(self) -> Client:
        if self._client is None:
            raise StoreFault("The line to Redis is not open.")
        return self._client

    def _require_closed_breaker(self) -> None:
        self._require_open()
        if not self.breaker.closed:
            raise StoreAway("Redis does not answer; it is asked again in the background.")

    async def _send(self, commands: tuple[Command, ...], timeout_s: float) -> list[Any]:
        replies = await self._within(timeout_s, commands)
        self.breaker.success()
        return replies

    async def _within(self, timeout_s: float, commands: tuple[Command, ...]) -> list[Any]:
        lag = Lag(timeout_s, self._clock)
        try:
            async with asyncio.timeout(timeout_s):
                return await round_trip(self._require_open(), commands)
        except Exception as error:
            if isinstance(error, TimeoutError) and lag.stop() <= timeout_s / 2:
                raise self._late(f"No answer from Redis within {timeout_s:g} s.") from error
            raise self._failed(error) from error
        finally:
            lag.stop()

    async def _exchange(self, commands: tuple[Command, ...]) -> list[Any]:
        async with asyncio.timeout(self._straggler_s):
            return await round_trip(self._require_open(), commands)

    def _end_call(self, call: asyncio.Task[list[Any]]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # looked at, in case that nobody waits any more

    def _settle(self, call: asyncio.Task[list[Any]]) -> list[Any]:
        error = call.exception()
        if error is not None:
            raise self._failed(error) from error
        self.breaker.success()
        return call.result()

    # ------------------------------------------------------------------ failing

    def _unanswered(self, why: str, fair_s: float) -> StoreFault:
        """Redis' fault, if it had `fair_s` of the request's patience."""
        return StoreFault(why) if fair_s > self.patience_s / 2 else self._late(why)

    def _late(self, why: str) -> StoreLate:
        self.late += 1
        return StoreLate(f"{why} This process was late itself.")

    def _failed(self, error: BaseException) -> StoreFault:
        fault = StoreFault(f"Redis failed: {str(error) or type(error).__name__}.")
        self._book_failure(str(fault))
        return fault

    def _book_failure(self, why: str, counts: bool = True) -> None:
        self.faults += 1
        if counts:
            self.breaker.failure()
        if not self.breaker.closed and (self._probe is None or self._probe.done()):
            self._on_event(f"{why} The shared cache is out of use until Redis answers in time.")
            self._probe = asyncio.create_task(self._try_again(), name="redis-probe")

    async def _try_again(self) -> None:
        """Until Redis answers in time. The first call of a trial may take long: it connects."""
        while not self.breaker.closed:
            await asyncio.sleep(self.breaker.wait_s)
            if not self.breaker.may_try():
                continue
            try:
                await self._within(self._work_s, (("PING",),))
                await self._send((("PING",),), self.patience_s)
            except StoreLate:
                self.breaker.undecided()
            except Exception:  # noqa: BLE001  whatever it is, the next trial is later
                self.breaker.failure()
        self._on_event("Redis answers again: the shared cache is back in use.")


async def _turns(call: asyncio.Task[list[Any]]) -> None:
    """Let what has arrived be read. In a busy process a reply waits for its turns of the loop, and
    that it is late is not Redis' fault."""
    for _ in range(_TURNS):
        if call.done():
            return
        await asyncio.sleep(0)


class WithPatience:
    """Gives each request its purse. Goes around the outermost layer that may ask Redis; a plain
    function call, so it costs nothing an event."""

    def __init__(self, line: RedisLine, inner: Answerer) -> None:
        self._line = line
        self._inner = inner

    def __call__(self, call: Call, trail: Trail) -> Answer:
        self._line.begin_request()
        return self._inner(call, trail)
