"""The one account of what was asked, what it cost, and what did not have to be computed.

Every call books one `Record`, before its `End` is handed on, so that nothing a caller has received
is missing from the account. The hot path makes the record and appends it to a list (about 1 µs);
metrics, the dashboard and the roll-up are folded from it in batches (observe/rollup.py), because a
labelled histogram alone would cost some 19 µs a request.

An answer that did not end was computed in vain. What it took stands with the rest of the waste, as
whoever computed it told the trail (`Trail.cut`): budgets and token rates are settled by the same
numbers (tenants/spend.py). A follower of a join is told of none, because another pays.

What is kept, and how it outlives the process: observe/journal.py and observe/keeper.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from engine.contract import (
    Answer,
    Answerer,
    AnswerError,
    Burst,
    CacheStatus,
    Call,
    Decision,
    Delta,
    End,
    Start,
    Trail,
    Usage,
    Waste,
)
from gateway.errors import CLIENT_GONE

NOBODY = "none"
"""The origin of a request that was not answered."""
NOTHING = Usage(0, 0)


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One call's line in the account. `model` is the one that answered, or the one that was asked.
    `usage` is 0 for an answer that did not end. Times in seconds; `at` is wall time."""

    at: float
    id: str
    tenant: str
    model: str
    origin: str
    status: int
    usage: Usage
    seconds: float
    ttft_s: float | None
    cache: list[CacheStatus]
    decisions: list[Decision]
    cut_tokens: int = 0
    """Of records of version 0.1 and before: an answer's tokens that were heard before it was cut.
    Today they are among the waste."""
    wasted: list[Waste] = []
    client_id: str = ""
    """The caller's own `x-request-id`, which may name many calls; at most 128 characters."""


def refusal(request_id: str, tenant: str, model: str, status: int, client_id: str = "") -> Record:
    """A request that was refused at the edge; `model` is empty before it became a call."""
    return Record(
        time.time(), request_id, tenant, model, NOBODY, status, NOTHING, 0.0, None, [], [],
        client_id=client_id,
    )  # fmt: skip


class Ledger:
    """Records that wait to be folded. Owned by the event loop's thread."""

    def __init__(self, journal: Callable[[Record], None] | None = None) -> None:
        """`journal` hears of a record before its `End` leaves (observe/journal.py)."""
        self._waiting: list[Record] = []
        self._journal = journal

    def append(self, record: Record) -> None:
        self._waiting.append(record)
        if self._journal is not None:
            self._journal(record)

    def take(self) -> list[Record]:
        """Everything that was booked since the last call."""
        taken, self._waiting = self._waiting, []
        return taken

    def __len__(self) -> int:
        return len(self._waiting)


class LedgerLayer:
    """The outermost answerer: it sees every event and books the call, however it ended."""

    def __init__(
        self,
        inner: Answerer,
        ledger: Ledger,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._inner = inner
        self._ledger = ledger
        self._clock = clock
        self._wall = wall

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        entry = _Entry(call, trail, self._clock())
        answer = self._inner(call, trail)
        try:
            async for event in answer:
                kind = event.__class__
                if kind is Delta or kind is Burst:
                    if entry.first is None:
                        entry.first = self._clock()
                elif kind is Start:
                    entry.start = event  # type: ignore[assignment]
                elif kind is End:
                    self._book(entry, 200, event.usage)  # type: ignore[union-attr]
                yield event
        except AnswerError as error:
            entry.status = error.status
            raise
        except Exception:
            entry.status = 500
            raise
        finally:
            await self._close(entry, answer)

    async def _close(self, entry: _Entry, answer: Answer) -> None:
        """Book it after it was closed: only then is it known who pays for what was computed."""
        try:
            await answer.aclose()
        finally:
            if not entry.booked:
                self._book(entry, entry.status or _why_stopped(entry.trail), NOTHING)

    def _book(self, entry: _Entry, status: int, usage: Usage) -> None:
        start, trail = entry.start, entry.trail
        first = entry.first
        entry.booked = True
        self._ledger.append(
            Record(
                self._wall(),
                trail.id,
                trail.tenant,
                start.model if start else entry.call.model,
                start.origin if start else NOBODY,
                status,
                usage,
                self._clock() - entry.started,
                None if first is None else first - entry.started,
                trail.cache,
                trail.decisions,
                wasted=trail.wasted,
                client_id=trail.client_id,
            )
        )


class _Entry:
    """What is known of one call while it is answered."""

    __slots__ = ("booked", "call", "first", "start", "started", "status", "trail")

    def __init__(self, call: Call, trail: Trail, started: float) -> None:
        self.call = call
        self.trail = trail
        self.started = started
        self.start: Start | None = None
        self.first: float | None = None
        self.status = 0
        self.booked = False


def _why_stopped(trail: Trail) -> int:
    """The status of an answer that was closed from outside: too late, or the client went."""
    return 408 if trail.remaining_s() == 0.0 else CLIENT_GONE
