"""HTTP/1.1 to a model elsewhere, over kept connections: an httpx transport of the fewest steps.

    slot ─▸ idle line, or a new one ─▸ head and body in one write ─▸ status, headers ─▸ pieces
    └──────────────── given back when the body was read to its end, else cut ──────────────┘

Problem. What a gateway adds to an answer from elsewhere is mostly its HTTP client: aiohttp's took
250 µs of the processor a call, httpx's own pool 1.5 ms, where reading a short answer takes 30.

Choice. The parser is httptools' (Node's llhttp), which also reads what callers send; here are only
a connection's state and the pool. It is used behind httpx's transport interface, so that the HTTP/2
transport of httpx stands in its place. It sends a body that is at hand, in the address that it is
given: no proxies, redirects, cookies or decompression, all of which are refused or unwanted anyway.

A request is never sent twice here. A line that the server closed while it lay idle is forgotten at
once; where that news crosses the request, the call fails as broken off, and whoever asked decides
whether to try again (remote.py). Time-outs of reading are the asker's, too; those of connecting
and of waiting for a free line are kept here, as httpx names them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any, TypeAlias, cast

import httptools
import httpx

MOST_BUFFERED = 256 << 10
"""A reader who is slower than the server makes us stop reading here."""
MOST_HEADERS = 256

_Key: TypeAlias = tuple[str, int, str | None]
"""Address, port, and for TLS the name that the certificate has to bear."""


class Whole(httpx.AsyncByteStream):
    """A request's body that is at hand. httpx's own, made from `content=`, costs 20 µs more.
    `sent`: the server may have it, so that who hangs up now may have been worked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sent = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.sent = True
        yield self.data


class Http1(httpx.AsyncBaseTransport):
    """Owned by one event loop. `keep_alive_s`: how long a line may lie idle."""

    def __init__(
        self, tls: ssl.SSLContext, *, max_connections: int = 512, keep_alive_s: float = 30.0
    ) -> None:
        self._tls = tls
        self._keep_alive_s = keep_alive_s
        self._slots = asyncio.Semaphore(max_connections)
        self._idle: dict[_Key, list[tuple[float, Line]]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Returns at the end of the response's headers. Raises what httpx's own transport does:
        PoolTimeout, ConnectTimeout, ConnectError, ReadError, RemoteProtocolError."""
        wire, limits = _wire_of(request), request.extensions.get("timeout", {})
        key = _key_of(request)
        await self._enter(limits.get("pool"))
        line: Line | None = None
        try:
            line = self._take(key) or await self._connect(key, limits.get("connect"))
            if isinstance(request.stream, Whole):
                request.stream.sent = True
            status, headers = await line.ask(wire)
        except BaseException:
            if line is not None:
                line.drop()
            self._slots.release()
            raise
        return httpx.Response(status, headers=headers, stream=_Body(self, key, line))

    async def aclose(self) -> None:
        """Idle lines are closed; those in use are closed by who reads them."""
        if self._sweep is not None:
            self._sweep.cancel()
        for lines in self._idle.values():
            for _, line in lines:
                line.drop()
        self._idle.clear()

    def give_back(self, key: _Key, line: Line) -> None:
        self._slots.release()
        if not line.reusable:
            line.drop()
            return
        loop = asyncio.get_running_loop()
        self._idle.setdefault(key, []).append((loop.time() + self._keep_alive_s, line))
        if self._sweep is None:
            self._sweep = loop.call_later(self._keep_alive_s, self._close_old)

    async def _enter(self, limit_s: float | None) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(limit_s):
                await self._slots.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("all connections are in use") from None

    def _take(self, key: _Key) -> Line | None:
        """The line that was used last: the others grow old and are closed."""
        lines = self._idle.get(key)
        while lines:
            _, line = lines.pop()
            if line.reusable:
                return line
            line.drop()
        return None

    async def _connect(self, key: _Key, limit_s: float | None) -> Line:
        host, port, name = key
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {} if name is None else {"ssl": self._tls, "server_hostname": name}
        try:
            async with asyncio.timeout(limit_s):
                _, line = await loop.create_connection(Line, host, port, **tls)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"{host} did not take the connection in time") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return line

    def _close_old(self) -> None:
        loop, self._sweep = asyncio.get_running_loop(), None
        now = loop.time()
        for key, lines in list(self._idle.items()):
            kept = [(until, line) for until, line in lines if until > now and line.reusable]
            for until, line in lines:
                if (until, line) not in kept:
                    line.drop()
            self._idle[key] = kept
            if not kept:
                del self._idle[key]
        oldest = min((lines[0][0] for lines in self._idle.values()), default=None)
        if oldest is not None:
            self._sweep = loop.call_at(oldest, self._close_old)


class _Body(httpx.AsyncByteStream):
    """What follows the headers, as it comes. Gives its line back once."""

    def __init__(self, pool: Http1, key: _Key, line: Line) -> None:
        self._pool = pool
        self._key = key
        self._line: Line | None = line

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        line = self._line
        piece = b"" if line is None else await line.read()
        if not piece:
            self._leave()
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self._leave()

    def _leave(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            self._pool.give_back(self._key, line)


class Line(asyncio.Protocol):
    """One connection: at most one request on it at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._framed = False
        """Whether the headers say where the body ends; else it ends with the connection."""
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._complete = True
        self._keep = True
        self._lost: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def reusable(self) -> bool:
        return (
            self._complete
            and self._keep
            and not self._pieces
            and self._lost is None
            and not self._transport.is_closing()
            and self._transport.get_write_buffer_size() == 0
        )

    def drop(self) -> None:
        self._transport.abort()

    async def ask(self, wire: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers of the answer to `wire`, a whole request."""
        self._status, self._headers, self._framed, self._complete = 0, [], False, False
        self._transport.write(wire)
        while not self._status:
            if self._lost is not None:
                raise self._lost
            await self._news()
        return self._status, self._headers

    async def read(self) -> bytes:
        """What has come since the last time; empty at the end."""
        while not self._pieces:
            if self._complete:
                return b""
            if self._lost is not None:
                raise self._lost
            await self._news()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._buffered = [], 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _tell(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ------------------------------------------------------------ what the connection tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self._fail("the server spoke unasked")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the server does not speak HTTP/1.1 here: {error}")
        if self._buffered > MOST_BUFFERED and not self._paused and self._lost is None:
            self._paused = True
            self._transport.pause_reading()
        self._tell()

    def connection_lost(self, error: Exception | None) -> None:
        if self._status and not self._framed and not self._complete and error is None:
            self._complete, self._keep = True, False
        if self._lost is None:
            self._lost = httpx.ReadError(str(error or "the server closed the connection"))
        self._tell()

    def _fail(self, why: str) -> None:
        self._lost = self._lost or httpx.RemoteProtocolError(why)
        self._transport.abort()
        self._tell()

    # ------------------------------------------------------------ what the parser tells

    def on_message_begin(self) -> None:
        if self._complete:  # a second answer in the packet that ended the first
            self._keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if len(self._headers) > MOST_HEADERS:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        if status < 200:  # 100 and 103 come before the answer
            self._headers = []
            return
        self._status = status
        self._keep = self._parser.should_keep_alive()
        self._framed = status in {204, 304} or any(
            name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in self._headers
        )

    def on_body(self, piece: bytes) -> None:
        if not self._complete:
            self._pieces.append(piece)
            self._buffered += len(piece)

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = True


def _key_of(request: httpx.Request) -> _Key:
    url = request.url
    host = url.raw_host.decode("ascii")
    if url.scheme == "https":
        return host, url.port or 443, request.extensions.get("sni_hostname") or host
    return host, url.port or 80, None


def _wire_of(request: httpx.Request) -> bytes:
    """The request as it is sent. Raises LocalProtocolError for a header that would be two."""
    lines = [request.method.encode("ascii"), b" ", request.url.raw_path, b" HTTP/1.1\r\n"]
    headers = request.headers.raw
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(headers) + 1 or head.count(b"\r") != len(headers) + 1:
        raise httpx.LocalProtocolError("a header's value holds a line break")
    body = request.stream
    return b"".join((head, b"\r\n", body.data if isinstance(body, Whole) else request.content))
