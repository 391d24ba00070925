"""How many requests are being answered, and the end of the server's life.

On SIGTERM the server first drains: `/readyz` says 503, so that a balancer looks elsewhere; new
requests are refused with a Retry-After; answers in flight go on to their end. When the grace is
over, what is left is told so inside its own stream and closed.

A server that is full refuses whoever has his part of it already, the limit over the tenants that
are being answered: a flood fills its own part and keeps nobody else out. (For that the limit may
be exceeded, by other tenants' parts.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from engine.contract import AnswerError, Overloaded
from gateway.errors import Draining


class Endable(Protocol):
    def end(self, reason: AnswerError) -> None: ...


class Drain:
    """Requests in flight. Owned by the event loop's thread; `begin` may be called from a signal."""

    def __init__(
        self, max_inflight: int, grace_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_inflight = max_inflight
        self._grace_s = grace_s
        self._clock = clock
        self._inflight: dict[Endable, str] = {}
        self._by_tenant: dict[str, int] = {}
        self._until: float | None = None

    @property
    def inflight(self) -> int:
        return len(self._inflight)

    @property
    def draining(self) -> bool:
        return self._until is not None

    def enter(self, request: Endable) -> None:
        """Take one request on, or raise Draining. Followed by `leave` either way."""
        if self._until is not None:
            raise Draining(
                "The server is shutting down; send the request again, to another one.",
                code="shutting_down",
                retry_after_s=1.0,
            )
        self._inflight[request] = ""

    def belong(self, request: Endable, tenant: str) -> None:
        """It is known whose it is; raises Overloaded where there is no room for it."""
        own = self._by_tenant.get(tenant, 0)
        part = self._max_inflight // (len(self._by_tenant) + (own == 0))
        # Itself is among those in flight.
        if len(self._inflight) > self._max_inflight and own >= part:
            raise Overloaded(
                f"{self._max_inflight} requests are being answered, which is this server's limit; "
                "send the request again shortly.",
                code="too_many_inflight",
                retry_after_s=1.0,
            )
        self._inflight[request] = tenant
        self._by_tenant[tenant] = own + 1

    def leave(self, request: Endable) -> None:
        tenant = self._inflight.pop(request, "")
        if tenant:
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]

    def begin(self) -> None:
        """Refuse what is new from now on. Only the first call counts."""
        if self._until is None:
            self._until = self._clock() + self._grace_s

    def finished(self) -> bool:
        """Whether the server may stop: nothing is in flight, or the grace is over."""
        return self._until is not None and (not self._inflight or self._clock() >= self._until)

    def end_all(self) -> None:
        for request in list(self._inflight):
            request.end(Draining("The server shut down before this answer ended; send it again.",
                                 code="shutting_down", retry_after_s=1.0))  # fmt: skip
