"""How fast a remote model is asked: answers per second on one core, against a mock that is faster.

    python -m bench.upstream [--seconds 5]

The mock (its own process, on core 1) says a canned answer to any POST: 35 events at once, or one.
Measured, each on core 0:

    remote    cascade/remote.py alone, as the gateway calls it, over both transports: request
              built, sent, every event parsed, on uvloop
    gateway   the whole program, every layer on (`no-store`, so that nothing is served from a
              cache), asked by wrk (on core 1, with the mock): one process, so a rate per core

The mock asked by wrk directly is the reference that the gateway's rate is a share of, in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, cast

import httpx
import uvloop

from bench.gateway import cpu_seconds, load, started
from cascade.address import Addresses
from cascade.guard import Backoff, Breaker
from cascade.remote import Remote, Upstream
from cascade.transport import open_transport
from engine.contract import Call, Message, Part, Trail

Row = dict[str, Any]
EVENTS = {"long": 35, "short": 1}
ASK = Call("chat", "far", "t", messages=(Message("user", (Part("text", "Hi" * 200),)),))


def canned(events: int) -> bytes:
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
                    "finish_reason": "stop" if at == events - 1 else None,
                }
            ],
        }
        for at in range(events)
    ]
    pieces.append({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": events}})
    data = b"".join(b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in pieces)
    data += b"data: [DONE]\n\n"
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)


class Mock(asyncio.Protocol):
    """Bodies hold no blank line: a request is complete at its closing brace."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.rest = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self.rest += data
        if self.rest.endswith(b"}"):
            self.rest = b""
            self.transport.write(self.reply)


def serve(listening: socket.socket, events: int) -> None:
    os.sched_setaffinity(0, {1})

    async def run() -> None:
        loop = asyncio.get_running_loop()
        reply = canned(events)
        server = await loop.create_server(lambda: Mock(reply), sock=listening)
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


async def alone(port: int, answer: str, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name in ("http1", "httpx"):
        transport: httpx.AsyncBaseTransport = open_transport(http2=name == "httpx")
        remote = Remote(
            Upstream("far", "m", "sk-x"),
            Addresses(f"http://127.0.0.1:{port}/v1", allow_private=True),
            transport,
            breaker=Breaker(time.monotonic),
            backoff=Backoff(random.Random(0)),
        )
        for width in (1, 32):
            row = {"what": f"remote, {name}", "answer": answer, "in flight": width}
            rows.append(row | await drive(remote, width, seconds))
            print(line_of(rows[-1]), flush=True)
        await transport.aclose()
    return rows


def asked_by_wrk(what: str, answer: str, port: int, seconds: float, pid: int = 0) -> list[Row]:
    rows: list[Row] = []
    for stream in (False, True):
        for width in (1, 32):
            load("pass", stream, width, 1, port)
            before = cpu_seconds(pid) if pid else 0.0
            requests, micros, p50, p99, errors = load("pass", stream, width, round(seconds), port)
            row: Row = {
                "what": f"{what}, {'stream' if stream else 'JSON'}",
                "answer": answer,
                "in flight": width,
                "rps": round(requests / (micros / 1e6)),
                "p50_ms": p50 / 1e3,
                "p99_ms": p99 / 1e3,
                "errors": errors,
            }
            if pid:
                row["cpu_ms"] = round((cpu_seconds(pid) - before) / max(1, requests) * 1e3, 3)
            rows.append(row)
            print(line_of(row), flush=True)
    return rows


def line_of(row: Row) -> str:
    return "  ".join(f"{key} {value}" for key, value in row.items())


def gateway(mock_port: int, answer: str, seconds: float) -> list[Row]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bench.upstream_server", str(port), str(mock_port)]
    process = started(["taskset", "-c", "0", *command], port)
    try:
        return asked_by_wrk("gateway", answer, port, seconds, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def measure(answer: str, seconds: float) -> list[Row]:
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    port = listening.getsockname()[1]
    mock = multiprocessing.Process(target=serve, args=(listening, EVENTS[answer]), daemon=True)
    mock.start()
    try:
        rows = uvloop.run(alone(port, answer, seconds))
        rows += asked_by_wrk("mock itself", answer, port, seconds)
        return rows + gateway(port, answer, seconds)
    finally:
        mock.kill()


def verdict(rows: list[Row]) -> list[str]:
    told = []
    for answer in EVENTS:
        rates = {row["what"]: row["rps"] for row in rows
                 if (row["answer"], row["in flight"]) == (answer, 32)}  # fmt: skip
        for shape in ("JSON", "stream"):
            through, direct = rates[f"gateway, {shape}"], rates[f"mock itself, {shape}"]
            told.append(
                f"{answer} answers, {shape}: {through} rps a core through the gateway (goal 1500), "
                f"{through / direct:.3f} of the mock itself"
            )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--answer", choices=EVENTS, help="one kind of answer")
    parser.add_argument("--out", type=Path, default=Path("bench/results/upstream.json"))
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {0})
    rows: list[Row] = []
    for answer in [arguments.answer] if arguments.answer else EVENTS:
        rows += measure(answer, arguments.seconds)
    if not arguments.answer:
        print(*verdict(rows), sep="\n")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
