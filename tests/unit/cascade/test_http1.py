"""The HTTP/1.1 transport against a socket whose every byte the test writes."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from cascade.http1 import MOST_BUFFERED, MOST_HEADERS, Http1, Whole
from tests.support.speakers import eventually

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Place:
    """A listening server: how often it was called, and what it was sent."""

    def __init__(self) -> None:
        self.port = 0
        self.calls = 0
        self.asked: list[bytes] = []

    def request(self, body: bytes = b"{}", **headers: str) -> httpx.Request:
        told = {"host": "there", "content-length": str(len(body)), **headers}
        return httpx.Request(
            "POST", f"http://127.0.0.1:{self.port}/v1/x", headers=told, stream=Whole(body)
        )


@asynccontextmanager
async def serving(
    *replies: bytes, then_close: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Place]:
    """Each request on a connection gets the next reply; the last one again and again."""
    place, tasks = Place(), set[asyncio.Task[None]]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place.calls += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                place.asked.append(head + await reader.readexactly(2))
                writer.write(replies[min(len(place.asked), len(replies)) - 1])
                await writer.drain()
                if then_close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    place.port = server.sockets[0].getsockname()[1]
    try:
        yield place
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def pool() -> AsyncIterator[Http1]:
    opened = Http1(ssl.create_default_context(), max_connections=2)
    yield opened
    await opened.aclose()


async def read(pool: Http1, request: httpx.Request) -> tuple[int, bytes]:
    response = await pool.handle_async_request(request)
    try:
        return response.status_code, await response.aread()
    finally:
        await response.aclose()


async def test_the_request_is_sent_as_it_was_made(pool: Http1) -> None:
    async with serving(OK) as place:
        assert await read(pool, place.request(accept="x")) == (200, b"hello")
    told = b"host: there\r\ncontent-length: 2\r\naccept: x\r\n\r\n{}"
    assert place.asked == [b"POST /v1/x HTTP/1.1\r\n" + told]


async def test_a_line_is_used_again_after_a_body_read_to_its_end(pool: Http1) -> None:
    async with serving(OK) as place:
        for _ in range(3):
            assert await read(pool, place.request()) == (200, b"hello")
    assert (place.calls, len(place.asked)) == (1, 3)


async def test_a_line_is_cut_where_its_body_was_not_read(pool: Http1) -> None:
    async with serving(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", OK) as place:
        response = await pool.handle_async_request(place.request())
        await response.aclose()
        assert await read(pool, place.request()) == (200, b"hello")
    assert place.calls == 2


@pytest.mark.parametrize(
    "reply",
    [
        OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        OK + OK,
        OK + b"!",
    ],
)
async def test_a_line_with_no_future_is_not_kept(pool: Http1, reply: bytes) -> None:
    async with serving(reply) as place:
        for _ in range(2):
            assert await read(pool, place.request()) == (200, b"hello")
    assert place.calls == 2


async def test_a_line_that_the_server_closed_is_forgotten(pool: Http1) -> None:
    async with serving(OK, then_close=True) as place:
        for _ in range(2):
            assert await read(pool, place.request()) == (200, b"hello")
            await asyncio.sleep(0.3)
    assert place.calls == 2


async def test_an_idle_line_is_closed_when_it_is_old() -> None:
    pool = Http1(ssl.create_default_context(), keep_alive_s=0.05)
    async with serving(OK) as place:
        await read(pool, place.request())
        await asyncio.sleep(0.15)
        await read(pool, place.request())
    assert place.calls == 2
    await pool.aclose()


async def test_a_body_without_a_length_ends_with_its_connection(pool: Http1) -> None:
    async with serving(b"HTTP/1.1 200 OK\r\n\r\nhello", then_close=True) as place:
        assert await read(pool, place.request()) == (200, b"hello")


async def test_early_hints_are_not_the_answer(pool: Http1) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with serving(hints + OK) as place:
        response = await pool.handle_async_request(place.request())
        assert (response.status_code, "link" in response.headers) == (200, False)
        assert await response.aread() == b"hello"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"", httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", httpx.ReadError),
        (b"SSH-2.0-OpenSSH\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 101 Go\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", httpx.TransportError),
        (
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * (MOST_HEADERS + 1) + b"\r\n",
            httpx.RemoteProtocolError,
        ),
    ],
)
async def test_what_is_not_an_answer_is_an_error_and_takes_no_slot(
    pool: Http1, reply: bytes, kind: type[Exception]
) -> None:
    async with serving(reply, then_close=True) as place:
        for _ in range(3):
            with pytest.raises(kind):
                await read(pool, place.request())


async def test_nobody_there_is_a_connect_error(pool: Http1) -> None:
    async with serving(OK) as place:
        pass
    with pytest.raises(httpx.ConnectError):
        await read(pool, place.request())


async def test_who_finds_no_free_line_waits_and_is_told(pool: Http1) -> None:
    async with serving(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello") as place:
        held = [await pool.handle_async_request(place.request()) for _ in range(2)]
        late = place.request()
        late.extensions["timeout"] = {"pool": 0.02}
        with pytest.raises(httpx.PoolTimeout):
            await pool.handle_async_request(late)
        waits = asyncio.create_task(pool.handle_async_request(place.request()))
        await asyncio.sleep(0.01)
        await held[0].aclose()
        for response in (await waits, held[1]):
            await response.aclose()


async def test_a_cancelled_call_gives_its_slot_back(pool: Http1) -> None:
    async with serving(b"HTTP/1.1 103 Wait\r\n\r\n") as place:
        for number in range(4):
            call = asyncio.create_task(pool.handle_async_request(place.request()))
            await eventually(lambda: len(place.asked) > number)  # noqa: B023  awaited at once
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
    assert place.calls == 4


async def test_a_slow_reader_stops_the_server_and_gets_everything(pool: Http1) -> None:
    size = 64 * MOST_BUFFERED
    async with serving(
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
    ) as place:
        response = await pool.handle_async_request(place.request())
        await asyncio.sleep(0.1)
        pieces = [len(piece) async for piece in response.stream]  # type: ignore[union-attr]
        assert sum(pieces) == size
        assert max(pieces) < 4 * MOST_BUFFERED
        await response.aclose()


async def test_a_header_that_would_be_two_is_not_sent(pool: Http1) -> None:
    async with serving(OK) as place:
        with pytest.raises(httpx.LocalProtocolError):
            await read(pool, place.request(accept="x\r\nauthorization: stolen"))
    assert place.calls == 0


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) of the name "far", signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    told = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=far -addext subjectAltName=DNS:far"
    made = ["openssl", *told.split(), "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True)
    return cert, key


async def test_the_certificate_must_bear_the_name_and_not_the_address(
    certified: tuple[Path, Path],
) -> None:
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(*certified)
    pool = Http1(ssl.create_default_context(cafile=certified[0]))
    async with serving(OK, tls=here) as place:
        request = place.request()
        request.url = request.url.copy_with(scheme="https")
        request.extensions["sni_hostname"] = "far"
        for _ in range(2):
            assert await read(pool, request) == (200, b"hello")
        assert place.calls == 1
        request.extensions["sni_hostname"] = "another"
        with pytest.raises(httpx.ConnectError):
            await read(pool, request)
    await pool.aclose()
