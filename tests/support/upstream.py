"""A real HTTP server on loopback that says what a test wrote down, byte by byte.

Raw asyncio, so that a test can cut a connection, stall, or split a line anywhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Writer = asyncio.StreamWriter
Script = Callable[["Asked", Writer], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Server:
    """`scripts` are played in order, one per request; the last one again and again."""

    scripts: Sequence[Script]
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        try:
            while (asked := await _read(reader)) is not None:
                self.asked.append(asked)
                at = min(len(self.asked), len(self.scripts)) - 1
                await self.scripts[at](asked, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
    if not head:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(first.split(" ")[1], headers, json.loads(body or b"{}"))


@asynccontextmanager
async def upstream(*scripts: Script) -> AsyncIterator[Server]:
    server = Server(scripts)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def head(status: int = 200, *fields: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *fields]
    lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST = b"0\r\n\r\n"


def event(value: object) -> bytes:
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"data: " + payload + b"\n\n"


def piece(text: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of one choice."""
    said = {**({"content": text} if text is not None else {}), **delta}
    return {
        "id": "c1",
        "created": 1_700_000_123,
        "choices": [{"index": delta.pop("at", 0), "delta": said, "finish_reason": finish}],
    }


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}


def stream(*values: object, done: bool = True, split: int | None = None) -> Script:
    """All events, in one write or in writes of `split` bytes."""

    async def play(asked: Asked, writer: Writer) -> None:
        data = b"".join(event(value) for value in values) + (b"data: [DONE]\n\n" if done else b"")
        writer.write(head(200, "content-type: text/event-stream"))
        for at in range(0, len(data), split or len(data)):
            writer.write(chunked(data[at : at + (split or len(data))]))
            if split:
                await writer.drain()
        writer.write(LAST)

    return play


def reply(status: int, value: object, *fields: str) -> Script:
    """One JSON document (or bytes) with a status."""

    async def play(asked: Asked, writer: Writer) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        fields_ = ("content-type: application/json", *fields)
        writer.write(head(status, *fields_, length=len(body)) + body)

    return play


def cut(*values: object) -> Script:
    """Some events, then the connection is gone."""

    async def play(asked: Asked, writer: Writer) -> None:
        if values:
            writer.write(head(200, "content-type: text/event-stream"))
            writer.write(chunked(b"".join(event(value) for value in values)))
            await writer.drain()
        raise ConnectionError

    return play


def stall(*values: object) -> Script:
    """Some events, then silence until the other side hangs up."""

    async def play(asked: Asked, writer: Writer) -> None:
        if values:
            writer.write(head(200, "content-type: text/event-stream"))
            writer.write(chunked(b"".join(event(value) for value in values)))
        while True:
            await asyncio.sleep(0.01)
            if values:
                writer.write(chunked(b": still here\n"))
            await writer.drain()
            if writer.is_closing():
                raise ConnectionError

    return play


HELLO = stream(piece(role="assistant", text=""), piece("Hel"), piece("lo", "stop"), USAGE)
