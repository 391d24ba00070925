"""How fast a remote model is asked: answers per second on one core, against a mock that is faster.

    python -m bench.upstream [--seconds 5]

The mock (its own process) says a canned answer of 35 events at once to any POST. Measured is
cascade/remote.py alone, as the gateway calls it, at 1 and 32 calls in flight, over both transports:
request built, sent, every event parsed, on uvloop. The mock takes another core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import socket
import time
from pathlib import Path
from typing import cast

import httpx
import uvloop

from cascade.address import Addresses
from cascade.guard import Backoff, Breaker
from cascade.remote import Remote, Upstream
from cascade.transport import open_transport
from engine.contract import Call, Message, Part, Trail

EVENTS = 35
ASK = Call("chat", "far", "t", messages=(Message("user", (Part("text", "Hi" * 200),)),))


def canned() -> bytes:
    pieces = [
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "delta": {"content": " word"},
                    "finish_reason": "stop" if at == EVENTS - 1 else None,
                }
            ],
        }
        for at in range(EVENTS)
    ]
    pieces.append({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": EVENTS}})
    data = b"".join(b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in pieces)
    data += b"data: [DONE]\n\n"
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)


class Mock(asyncio.Protocol):
    reply = canned()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.rest = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        """Bodies hold no blank line: a request is complete at its closing brace."""
        self.rest += data
        if self.rest.endswith(b"}"):
            self.rest = b""
            self.transport.write(self.reply)


def serve(listening: socket.socket) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Mock, sock=listening)
        await server.serve_forever()

    uvloop.run(run())


async def drive(remote: Remote, width: int, seconds: float) -> dict[str, float]:
    until, times = time.perf_counter() + seconds, []

    async def one_after_another() -> None:
        while time.perf_counter() < until:
            started = time.perf_counter()
            async for _ in remote(ASK, Trail("r")):
                pass
            times.append(time.perf_counter() - started)

    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(width)))
    took = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    times.sort()
    return {
        "rps": round(len(times) / took),
        "p50_ms": round(times[len(times) // 2] * 1e3, 2),
        "p99_ms": round(times[int(len(times) * 0.99)] * 1e3, 2),
        "cpu_ms": round(cpu_s / len(times) * 1e3, 3),
    }


async def measure(port: int, seconds: float) -> list[dict[str, object]]:
    rows = []
    for name in ("aiohttp", "httpx"):
        transport: httpx.AsyncBaseTransport = open_transport(http2=name == "httpx")
        remote = Remote(
            Upstream("far", "m", "sk-x"),
            Addresses(f"http://127.0.0.1:{port}/v1", allow_private=True),
            transport,
            breaker=Breaker(time.monotonic),
            backoff=Backoff(random.Random(0)),
        )
        for width in (1, 32):
            row = {"transport": name, "in flight": width, **await drive(remote, width, seconds)}
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        await transport.aclose()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/upstream.json"))
    arguments = parser.parse_args()
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    mock = multiprocessing.Process(target=serve, args=(listening,), daemon=True)
    mock.start()
    rows = uvloop.run(measure(listening.getsockname()[1], arguments.seconds))
    mock.kill()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
