"""uvicorn, with the eight things that it leaves to others.

- A head that never arrives: uvicorn times out idle connections but not a request whose headers
  trickle in. `Protocol` drops the line after `head_timeout_s`, and so does one that says nothing.
- A head that never ends: uvicorn gathers headers of any size. Past `MAX_HEAD_BYTES` it is a 431.
- An offer to change protocols (`Upgrade: h2c`, which Java's client and `curl --http2` make with
  their first request): httptools stops reading there, and the body would be lost. We decline as
  HTTP/1.1 provides, by answering as if nothing had been offered, and read the body with a parser
  of its own.
- Draining: uvicorn closes its listener at SIGTERM. `DrainingServer` first turns /readyz to 503 and
  refuses new work while answers in flight end (gateway/drain.py), and only then lets uvicorn stop.
- SIGHUP, which would kill the answers in flight where nobody takes it: here it asks for a reload.
- Exit status: uvicorn ends itself with the signal it got; an orderly end is exit status 0.
- A quick head: uvicorn searches each header for what must not be in one, which for the dozen
  headers of an answer takes half as long as everything else that it does to send it. `Cycle` joins
  those of the hot paths as they are: they are ours (api/exchange.py), never a caller's bytes
  unchecked.
- TCP_NODELAY, without which a stream's small writes wait 40 ms for the peer's delayed
  acknowledgement. Event loops set it on connections of listeners that they made themselves; asyncio
  does not for one that it is handed, as ours is.
"""

from __future__ import annotations

import asyncio
import gc
import http
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import httptools
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from engine.contract import AnswerError, BadCall
from gateway.app import Front
from gateway.drain import Drain
from gateway.errors import HeadTooLarge, body_of
from gateway.observe.logs import Bridge, Log
from gateway.settings import Server

MAX_HEAD_BYTES = 64 << 10
LAST_CLOSE_S = 2
"""Between telling the last streams that it is over and closing on them."""


class _BodyOnly:
    """What a parser tells of a request whose head has been read already."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete


class Cycle(RequestResponseCycle):
    """A response, whose head may be `sluice.trusted`: length known or chunked, and no header in it
    that means anything to uvicorn."""

    async def send(self, message: Any) -> None:
        if "sluice.trusted" not in message or self.response_started:
            return await super().send(message)
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return None
        self.response_started = True
        self.waiting_for_100_continue = False
        length = message["sluice.trusted"]
        self.chunked_encoding = length is None
        self.expected_content_length = length or 0
        head = [STATUS_LINE[message["status"]]]
        for name, value in (*self.default_headers, *message["headers"]):
            head += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            head.append(b"connection: close\r\n")
        framing = b"transfer-encoding: chunked\r\n\r\n"
        head.append(framing if length is None else b"content-length: %d\r\n\r\n" % length)
        self.transport.write(b"".join(head))
        return None


class Protocol(HttpToolsProtocol):
    """A connection that must send each request's head within `head_timeout_s`, counted from its
    first byte; the first head counts from the connection's start."""

    head_timeout_s = 10.0
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _reading = 0
    """Bytes of the read that is being parsed."""
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
        read, self._head_bytes = self._head_bytes + self._reading, 0
        if self._head_timer is not None:
            self._stop_waiting()
        if read > MAX_HEAD_BYTES and _head_size(self.url, self.headers) > MAX_HEAD_BYTES:
            # Raised through the parser, which then reads no further.
            raise self._too_large()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._reading = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self._decline_upgrade(data[stopped.args[0] :])
        except httptools.HttpParserError as error:
            why, bad = error.__context__, BadCall(f"This is not HTTP/1.1: {error}.",
                                                  code="invalid_http")  # fmt: skip
            self._refuse(why if isinstance(why, HeadTooLarge) else bad)
        if self._in_head:
            self._grow_head(len(data))

    def _grow_head(self, size: int) -> None:
        """`size` more bytes have come and the head is not complete. What came before it in the
        same read is counted as well: the limit is one of memory, not of manners."""
        self._head_bytes += size
        if self._head_timer is None:
            self._wait_for_head()
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(self._too_large())

    def _too_large(self) -> HeadTooLarge:
        return HeadTooLarge(
            f"The headers are larger than {MAX_HEAD_BYTES} bytes; send less in them.",
            code="head_too_large",
        )

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the body that begins with `rest`; the connection ends with this request."""
        self.cycle.keep_alive = False
        framing = [
            name + b": " + value + b"\r\n"
            for name, value in self.headers
            if name in {b"content-length", b"transfer-encoding"}
        ]
        if not framing:
            return
        self.cycle.more_body = True
        self.parser = httptools.HttpRequestParser(_BodyOnly(self))
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n" + rest)
        except httptools.HttpParserError as error:
            self._refuse(BadCall(f"This is not HTTP/1.1: {error}.", code="invalid_http"))

    def _refuse(self, error: AnswerError) -> None:
        """Answer what is not a request that an application could be asked with, and hang up."""
        body = body_of(error)
        head = (
            f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        if not self.pipeline and not self._is_answering():
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _is_answering(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.response_started and not cycle.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.__class__ = Cycle  # uvicorn names the class where it makes one, and asks nobody
        super()._start_asgi_task(cycle, app)

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _head_size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def protocol_with(head_timeout_s: float) -> type[Protocol]:
    """uvicorn takes a class and hands it no settings of ours, hence a class per setting."""
    return type("TimedProtocol", (Protocol,), {"head_timeout_s": head_timeout_s})


class DrainingServer(uvicorn.Server):
    """A server that finishes its answers before it stops."""

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Drain,
        on_ready: Callable[[], None] = lambda: None,
        on_hangup: Callable[[], None] = lambda: None,
        is_lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._is_lost = is_lost
        self._on_ready = on_ready
        self._on_hangup = on_hangup
        self.told_to_stop = False
        """By a signal, also while it drains for a reason of its own."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, _: FrameType | None) -> None:
        """The first signal drains; a second one stops at once."""
        self.told_to_stop = True
        if self._drain.draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            return
        self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn asks ten times a second whether to stop. A lost GPU is a reason to."""
        if not self._drain.draining and self._is_lost() is not None:
            self._drain.begin()
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
    *,
    on_hangup: Callable[[], None] = lambda: None,
    is_lost: Callable[[], str | None] = lambda: None,
) -> DrainingServer:
    """A server to `serve()`, which calls `on_ready` when it listens, and `on_hangup` at SIGHUP, and
    drains by itself when `is_lost` gives a reason. What libraries log goes to `log`."""
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
    return DrainingServer(config, drain, on_ready, on_hangup, is_lost)


def run(server: DrainingServer, sockets: list[socket.socket] | None = None) -> None:
    """Serve until told to stop, in a loop of uvloop's and with a quiet interpreter.

    Two habits of Python cost a busy gateway dearly. The collector looks again and again through
    what lives until the end (torch alone makes 300,000 objects, 100 ms a pass): that is frozen. And
    a full pass through all stored answers takes tens of milliseconds, but what it is for, cycles
    that outlive two younger passes, hardly arises here: it is made a hundred times rarer.
    And an event loop registers every async generator, to close forgotten ones when it ends: with a
    layer a generator these are four WeakSet entries a request, 2 µs. Every answer here is closed
    by who iterates it (engine/contract.py), so the registration is left out; the loop still
    closes what the collector finds unfinished.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 20, 500)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(server, sockets))


async def _serve(server: DrainingServer, sockets: list[socket.socket] | None) -> None:
    sys.set_asyncgen_hooks(firstiter=None)
    await server.serve(sockets)
