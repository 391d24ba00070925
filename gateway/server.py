"""uvicorn, with the four things that it leaves to others.

- A head that never arrives: uvicorn times out idle connections but not a request whose headers
  trickle in. `Protocol` drops the line after `head_timeout_s`, and so does one that says nothing.
- Draining: uvicorn closes its listener at SIGTERM. `DrainingServer` first turns /readyz to 503 and
  refuses new work while answers in flight end (gateway/drain.py), and only then lets uvicorn stop.
- Exit status: uvicorn ends itself with the signal it got; an orderly end is exit status 0.
- TCP_NODELAY, without which a stream's small writes wait 40 ms for the peer's delayed
  acknowledgement. Event loops set it on connections of listeners that they made themselves; asyncio
  does not for one that it is handed, as ours is.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.app import Front
from gateway.drain import Drain
from gateway.observe.logs import Bridge, Log
from gateway.settings import Server

LAST_CLOSE_S = 2
"""Between telling the last streams that it is over and closing on them."""


class Protocol(HttpToolsProtocol):
    """A connection that must send each request's head within `head_timeout_s`, counted from its
    first byte; the first head counts from the connection's start."""

    head_timeout_s = 10.0
    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        accepted = transport.get_extra_info("socket")
        if accepted is not None and accepted.family in {socket.AF_INET, socket.AF_INET6}:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._stop_waiting()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and self._head_timer is None:
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def protocol_with(head_timeout_s: float) -> type[Protocol]:
    """uvicorn takes a class and hands it no settings of ours, hence a class per setting."""
    return type("TimedProtocol", (Protocol,), {"head_timeout_s": head_timeout_s})


class DrainingServer(uvicorn.Server):
    """A server that finishes its answers before it stops."""

    def __init__(
        self, config: uvicorn.Config, drain: Drain, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, _: FrameType | None) -> None:
        """The first signal drains; a second one stops at once."""
        if self._drain.draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            return
        self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn asks ten times a second whether to stop."""
        if self._drain.finished():
            self._drain.end_all()
            return True
        return await super().on_tick(counter)


def build_server(
    app: Front,
    settings: Server,
    drain: Drain,
    log: Log,
    on_ready: Callable[[], None] = lambda: None,
) -> DrainingServer:
    """A server to `serve()`, which calls `on_ready` when it listens. What libraries log goes to
    `log`."""
    libraries = logging.getLogger("uvicorn")
    libraries.handlers = [Bridge(log)]
    libraries.propagate = False
    libraries.setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=protocol_with(settings.head_timeout_s),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=LAST_CLOSE_S,
        backlog=2048,
    )
    return DrainingServer(config, drain, on_ready)
