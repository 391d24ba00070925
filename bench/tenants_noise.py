"""The noisy neighbour of bench/tenants.py: what a flood does to somebody else's first token.

The server is a process of its own with the bundled models, nothing cached. Its capacity is measured
first (16 callers at once); a share is half of it. The victim's requests come at random (Poisson) at
half of its share, each on a connection of its own; the flood comes from another process, at 20
shares, open loop, with at most 512 requests in flight. Phases:

    alone                 the victim, nobody else
    beside a flood        equal shares, no limits: the engine's scheduler is all there is
    beside a limited one  the same, and the flooding tenant has a max_concurrent of an eighth of
                          the engine's running sequences
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.program import ROOT, quiet_environment, running

FLOOD = 20
CALLERS = 16
MAX_IN_FLIGHT = 512
MAX_RUNNING = 32
ANSWER_TOKENS = 24
QUIET, NOISY, LIMITED = "sk-quiet", "sk-noisy", "sk-limited"
WORDS = "river gate water lock boat stone bridge mill wheel stream weir canal".split()


@dataclass(frozen=True)
class Noise:
    """Times to the victim's first token."""

    what: str
    p50_ms: float
    p95_ms: float
    asked: int
    refused: int
    flooded_a_second: float


def settings() -> str:
    policies = {"quiet": QUIET, "noisy": NOISY, "limited": LIMITED}
    tenants = ""
    for name, key in policies.items():
        hashed = hashlib.sha256(key.encode()).hexdigest()
        tenants += f'[[tenants]]\nname = "{name}"\nkeys = ["{hashed}"]\n'
    tenants += f"max_concurrent = {MAX_RUNNING // 8}\n"
    return (
        f"[server]\nport = 0\n[engine]\nmax_running = {MAX_RUNNING}\nthreads = 1\n"
        "[cache.exact]\nenabled = false\n[cache.semantic]\nenabled = false\n"
        f'[logs]\nlevel = "warning"\n{tenants}'
    )


def body_of(draw: random.Random) -> bytes:
    """A question that nobody has asked, of some 60 tokens, streamed."""
    text = " ".join(draw.choices(WORDS, k=50))
    return json.dumps(
        {
            "model": "small", "stream": True, "max_tokens": ANSWER_TOKENS, "temperature": 0,
            "messages": [{"role": "user", "content": f"{draw.random()} {text}"}],
        }
    ).encode()  # fmt: skip


async def ask(port: int, key: str, draw: random.Random) -> tuple[int, float]:
    """(status, seconds to the first piece of text), with the whole answer read."""
    body = body_of(draw)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    first = 0.0
    try:
        writer.write(head.encode() + body)
        status = int((await reader.readline()).split()[1])
        async for line in reader:
            if not first and line.startswith(b"data: {") and b'"content":"' in line:
                said = json.loads(line[6:])["choices"]
                if said and said[0]["delta"].get("content"):
                    first = time.perf_counter() - started
    finally:
        writer.close()
    return status, first


async def open_loop(
    port: int, key: str, a_second: float, seconds: float, most: int
) -> list[tuple[int, float]]:
    """Requests at random times, whatever becomes of them; none is begun beyond `most` at once."""
    draw = random.Random(key)
    begun: set[asyncio.Task[tuple[int, float]]] = set()
    done: list[tuple[int, float]] = []

    def finish(task: asyncio.Task[tuple[int, float]]) -> None:
        begun.discard(task)
        if not task.cancelled() and task.exception() is None:
            done.append(task.result())

    at = time.perf_counter()
    end = at + seconds
    while at < end:
        at += draw.expovariate(a_second)
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        if len(begun) < most:
            task = asyncio.create_task(ask(port, key, draw))
            begun.add(task)
            task.add_done_callback(finish)
    if begun:
        await asyncio.wait(begun, timeout=60)
    return done


async def capacity(port: int, seconds: float) -> float:
    """Requests a second with CALLERS at once."""
    end = time.perf_counter() + seconds
    draw = random.Random(1)
    count = 0

    async def call() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await ask(port, NOISY, draw)
            count += 1

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(CALLERS)))
    return count / (time.perf_counter() - started)


def phase(what: str, port: int, share: float, seconds: float, noisy: str) -> Noise:
    flood = None
    if noisy:
        flood = subprocess.Popen(
            [sys.executable, "-m", "bench.tenants_noise", str(port), noisy, str(FLOOD * share),
             str(seconds + 4)],
            cwd=ROOT, env=quiet_environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(4)  # it is under way
    asked = asyncio.run(open_loop(port, QUIET, share / 2, seconds, MAX_IN_FLIGHT))
    flooded = 0.0
    if flood is not None:
        said, _ = flood.communicate(timeout=120)
        flooded = float(said)
    times = [first * 1e3 for status, first in asked if status == 200 and first]
    if len(times) < 2:
        raise SystemExit(f"{what}: of {len(asked)} requests {len(times)} were answered")
    p95 = statistics.quantiles(times, n=20)[18]
    refused = sum(status != 200 for status, _ in asked)
    return Noise(what, statistics.median(times), p95, len(asked), refused, flooded)


def measure_noise(folder: Path, seconds: float) -> list[Noise]:
    home = folder / "noise"
    home.mkdir()
    with running(home, settings()) as program:
        asyncio.run(capacity(program.port, 2.0))  # warm
        whole = asyncio.run(capacity(program.port, max(2.0, seconds / 4)))
        share = whole / 2
        print(f"\nsmall answers {whole:.1f} requests a second; a share is {share:.1f}, "
              f"the flood {FLOOD * share:.0f}")  # fmt: skip
        return [
            phase("alone", program.port, share, seconds, ""),
            phase("beside a flood", program.port, share, seconds, NOISY),
            phase("beside a limited one", program.port, share, seconds, LIMITED),
        ]


async def _flood(port: int, key: str, a_second: float, seconds: float) -> None:
    done = await open_loop(port, key, a_second, seconds, MAX_IN_FLIGHT)
    print(len(done) / seconds)


if __name__ == "__main__":
    asyncio.run(_flood(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
