"""The noisy neighbour of bench/tenants.py: what a flood does to somebody else's first token.

The server is a process of its own with the bundled models, nothing cached. Its capacity is measured
first (16 callers at once); a share is half of it. The victim's requests come at random (Poisson) at
half of its share, each on a connection of its own; the flood comes from another process, at 20
shares, open loop, with at most 512 requests in flight. Phases:

    alone                 the victim, nobody else
    beside a flood        equal shares, no limits: the engine's scheduler is all there is
    beside a limited one  the same, and the flooding tenant has a max_concurrent of an eighth of
                          the engine's running sequences
    a flood elsewhere     the same flood, at a bare server beside ours that refuses it at once: what
                          its client alone takes of the machine, and so of the ratio

The phases take turns, several rounds of them: on a machine that others use, each meets the same
times, good and bad. What is printed is of all rounds together.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.support.program import ROOT, quiet_environment, running

FLOOD = 20
CALLERS = 16
MAX_IN_FLIGHT = 512
MAX_RUNNING = 32
ANSWER_TOKENS = 24
AHEAD_S = 4.0
"""So long a flood is under way before the victim asks."""
QUIET, NOISY, LIMITED = "sk-quiet", "sk-noisy", "sk-limited"
Flood: TypeAlias = tuple[int, str] | None
"""Port and key."""
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


@dataclass(frozen=True)
class Heard:
    """What one phase of one round heard."""

    asked: list[tuple[int, float]]
    flooded_a_second: float


def of_all(what: str, rounds: list[Heard]) -> Noise:
    """The rounds of a phase as one."""
    asked = [one for heard in rounds for one in heard.asked]
    times = [first * 1e3 for status, first in asked if status == 200 and first]
    if len(times) < 2:
        raise SystemExit(f"{what}: of {len(asked)} requests {len(times)} were answered")
    return Noise(
        what,
        statistics.median(times),
        statistics.quantiles(times, n=20)[18],
        len(asked),
        sum(status != 200 for status, _ in asked),
        statistics.mean(heard.flooded_a_second for heard in rounds),
    )


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
    port: int, draw: random.Random, key: str, a_second: float, seconds: float, patience_s: float
) -> list[tuple[int, float]]:
    """Requests at random times, whatever becomes of them; none is begun beyond MAX_IN_FLIGHT at
    once. What has not ended `patience_s` after the last is not waited for."""
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
        if len(begun) < MAX_IN_FLIGHT:
            task = asyncio.create_task(ask(port, key, draw))
            begun.add(task)
            task.add_done_callback(finish)
    if begun:
        await asyncio.wait(begun, timeout=patience_s)
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


def phase(port: int, draw: random.Random, share: float, seconds: float, flood: Flood) -> Heard:
    process = None
    if flood is not None:
        at, key = flood
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.tenants_noise", str(at), key, str(FLOOD * share),
             str(seconds + AHEAD_S), str(draw.random())],
            cwd=ROOT, env=quiet_environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(AHEAD_S)
    asked = asyncio.run(open_loop(port, draw, QUIET, share / 2, seconds, patience_s=60))
    flooded = float(process.communicate(timeout=120)[0]) if process is not None else 0.0
    return Heard(asked, flooded)


@contextmanager
def refusing() -> Iterator[int]:
    """The port of a bare server, a process of its own, that refuses whatever it is asked."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.tenants_noise"],
        cwd=ROOT, env=quiet_environment(), stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


def measure_noise(folder: Path, seconds: float, rounds: int) -> list[Noise]:
    """`seconds`: of each phase, in all rounds together."""
    home = folder / "noise"
    home.mkdir()
    with running(home, settings()) as program, refusing() as elsewhere:
        asyncio.run(capacity(program.port, 2.0))  # warm
        whole = asyncio.run(capacity(program.port, max(2.0, seconds / 4)))
        share = whole / 2
        print(f"\nsmall answers {whole:.1f} requests a second; a share is {share:.1f}, "
              f"the flood {FLOOD * share:.0f}")  # fmt: skip
        floods: dict[str, Flood] = {
            "alone": None,
            "beside a flood": (program.port, NOISY),
            "beside a limited one": (program.port, LIMITED),
            "a flood elsewhere": (elsewhere, NOISY),
        }
        heard: dict[str, list[Heard]] = {what: [] for what in floods}
        draw = random.Random(QUIET)
        for _ in range(rounds):
            for what, flood in floods.items():
                heard[what].append(phase(program.port, draw, share, seconds / rounds, flood))
                program.wait_idle()
        return [of_all(what, heard[what]) for what in floods]


async def _flood(port: int, key: str, a_second: float, seconds: float, seed: str) -> None:
    done = await open_loop(port, random.Random(seed), key, a_second, seconds, patience_s=0.5)
    print(len(done) / seconds)


async def _refuse() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        asyncio.run(_refuse())
    else:
        _port, _key, _a_second, _seconds, _seed = sys.argv[1:]
        asyncio.run(_flood(int(_port), _key, float(_a_second), float(_seconds), _seed))
