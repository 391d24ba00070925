"""What a Redis that gateways share costs, and what its faults cost.

    python -m bench.redis                    # about three minutes
    python -m bench.redis --only cost        # hits and misses beside a store in memory
    python -m bench.redis --only faults
    python -m bench.redis --only semantic    # the faults again, answering by meaning as well

Needs redis-server and wrk on the PATH.

Cost. As bench/gateway.py: one gateway alone on core 0, wrk and Redis on core 1, a fake model that
answers at once. All three gateways are there at once and are measured by turns, `ROUNDS` times, so
that what else the machine does falls on all of them alike; a row is the median of its rounds, and
what Redis costs is the median of the differences within a round. `no memory` leaves the gateway no
room of its own (1 byte), so that each hit is read from Redis; with memory a hit is the same as
without Redis. A miss pays for two looks, a claim, the posts of its log and the write.

Faults. Two gateways with one Redis, 16 callers, questions of which some return (half of them out
of 40, half new), a model that takes about 40 ms. Each phase runs for some seconds while Redis is in
the named state; the last column is the bound of the goal, 2 × the healthy p99 + 25 ms. With the
semantic cache on, its questions and labels are in the same Redis, the embedder is the real one, and
what returns does so in other words (`--only semantic`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.gateway import PROMPT, ROOT, TITLE, Cell, line_of, measure
from bench.gateway_answers import KEY
from tests.support.redis_server import RedisServer, running_redis

PORTS = (18_090, 18_091, 18_092)
ROUNDS = 5
GATEWAYS = 2
CALLERS = 16
DEADLINE_MS = 25.0
MODEL_PAUSE_S = 0.001
MEMORY = str(64 << 20)


@contextmanager
def gateway(
    port: int, *arguments: str, core: str = "0", module: str = "bench.gateway_server"
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that is ready, ended with the block."""
    command = ["taskset", "-c", core, sys.executable, "-m", module, str(port)]
    process = subprocess.Popen([*command, *arguments], cwd=ROOT)
    try:
        _wait_for(port)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
            continue
        return
    raise SystemExit("the gateway did not start")


# --------------------------------------------------------------------------- cost


Rounds = dict[tuple[str, str, int], list[Cell]]
"""By gateway, what is asked and connections."""


def cost(server: RedisServer, seconds: int) -> Rounds:
    rows = {
        "memory": ("memory://", MEMORY),
        "redis": (server.url, MEMORY),
        "no memory": (server.url, "1"),
    }
    server.client.flushall()
    told: Rounds = {}
    with ExitStack() as stack:
        running = [
            (name, port, stack.enter_context(gateway(port, *arguments)).pid)
            for port, (name, arguments) in zip(PORTS, rows.items(), strict=True)
        ]
        for what in ("hit", "miss"):
            for connections in (1, 32):
                for _ in range(ROUNDS):
                    for name, port, pid in running:
                        each = max(1, seconds // ROUNDS)
                        cell = measure(name, pid, what, False, connections, each, port)
                        told.setdefault((name, what, connections), []).append(cell)
    for cells in told.values():
        print(line_of(middle(cells)), flush=True)
    return told


def middle(cells: list[Cell]) -> Cell:
    """The one with the median p50."""
    return sorted(cells, key=lambda cell: cell.p50_ms)[len(cells) // 2]


def verdict(told: Rounds) -> list[str]:
    def over(server: str, what: str) -> str:
        pairs = zip(told[server, what, 1], told["memory", what, 1], strict=True)
        each = sorted(mine.p50_ms - memory.p50_ms for mine, memory in pairs)
        return (
            f"p50 {statistics.median(each):+.3f} ms over memory ({each[0]:+.3f} to {each[-1]:+.3f})"
        )

    return [
        f"a hit read from Redis: {over('no memory', 'hit')}; goal 0.400",
        f"a miss with Redis: {over('redis', 'miss')}",
    ]


# --------------------------------------------------------------------------- faults


@dataclass
class Phase:
    """What callers saw while Redis was in one state. Times in ms."""

    name: str
    times_ms: list[float] = field(default_factory=list)
    origins: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def quantile(self, share: float) -> float:
        ordered = sorted(self.times_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def line(self, healthy_p99: float) -> str:
        total = max(1, self.origins.total())
        shares = [self.origins[name] / total for name in ("exact", "semantic", "joined", "large")]
        bound = 2 * healthy_p99 + DEADLINE_MS
        told = " ".join(f"{share:7.1%}" for share in shares)
        return (
            f"{self.name:24} {len(self.times_ms):8} {self.failed:6} {self.quantile(0.5):8.2f} "
            f"{self.quantile(0.99):8.2f} {max(self.times_ms, default=0.0):8.1f} {told} {bound:8.1f}"
        )


HEAD = f"{'Redis is':24} {'answers':>8} {'failed':>6} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} \
{'exact':>7} {'meaning':>7} {'joined':>7} {'model':>7} {'bound':>8}"


class Callers:
    """Raw keep-alive connections, half to each gateway, one request at a time on each. What returns
    is said in one of `endings`."""

    def __init__(self, endings: Sequence[str]) -> None:
        self._endings = endings
        self._rng = random.Random(1)
        self._asked = 0

    async def run(self, name: str, seconds: float) -> Phase:
        phase, end = Phase(name), time.monotonic() + seconds
        await asyncio.gather(*(self._call(PORTS[i % GATEWAYS], phase, end) for i in range(CALLERS)))
        return phase

    async def _call(self, port: int, phase: Phase, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < end:
            request = self._next_request()
            began = time.perf_counter()
            writer.write(request)
            status, headers, _ = await _reply(reader)
            phase.times_ms.append((time.perf_counter() - began) * 1e3)
            phase.failed += status != 200
            phase.origins[headers.get("sluice-origin", "none")] += 1
        writer.close()

    def _next_request(self) -> bytes:
        self._asked += 1
        again = self._rng.random() < 0.5
        # What returns changes slowly, so that healthy gateways have something to share.
        number = self._rng.randrange(40) + self._asked // 500 * 40 if again else -self._asked
        text = f"{number} {PROMPT}{self._rng.choice(self._endings)}"
        messages = [{"role": "user", "content": text}]
        body = json.dumps({"model": "large", "messages": messages, "temperature": 0}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def _reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return int(first.split(" ")[1]), headers, body


Step = Callable[[RedisServer], None]
FAULTS: dict[str, tuple[Step, Step]] = {
    "killed": (RedisServer.kill, RedisServer.start),
    "stopped (SIGSTOP)": (RedisServer.stop, RedisServer.resume),
    "full (noeviction)": (RedisServer.fill, RedisServer.make_room),
    "flushed": (lambda server: server.client.flushall(), lambda _: None),
}


ENDINGS = ("", " Please.", " Thanks.", " Thank you!", " Please help.", " Thanks a lot.")


def faults(server: RedisServer, seconds: int, *, meaning: bool) -> list[Phase]:
    server.client.flushall()
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        for core, port in enumerate(PORTS[:GATEWAYS]):
            if meaning:
                module = "bench.gateway_semantic_server"
                arguments = (f"{home}/{port}", "on", server.url, str(MODEL_PAUSE_S))
                Path(arguments[0]).mkdir()
            else:
                module = "bench.gateway_server"
                arguments = (server.url, MEMORY, str(MODEL_PAUSE_S))
            stack.enter_context(gateway(port, *arguments, core=str(core), module=module))
        return asyncio.run(_fault_phases(server, seconds, Callers(ENDINGS if meaning else ("",))))


async def _fault_phases(server: RedisServer, seconds: int, callers: Callers) -> list[Phase]:
    await callers.run("warming up", 2)
    healthy = await callers.run("well", seconds)
    phases = [healthy]
    print(HEAD)
    print(healthy.line(healthy.quantile(0.99)), flush=True)
    for name, (begin, end) in FAULTS.items():
        running = asyncio.create_task(callers.run(name, seconds))
        await asyncio.sleep(0.5)  # the fault begins under load
        await asyncio.to_thread(begin, server)
        phases.append(await running)
        print(phases[-1].line(healthy.quantile(0.99)), flush=True)
        await asyncio.to_thread(end, server)
        await callers.run("recovering", 3)
        phases.append(await callers.run("  and then well", seconds / 2))
        print(phases[-1].line(healthy.quantile(0.99)), flush=True)
    return phases


def told_of(phase: Phase) -> dict[str, object]:
    times = {"p50_ms": phase.quantile(0.5), "p99_ms": phase.quantile(0.99)}
    return {"name": phase.name, **times, "failed": phase.failed, "origins": dict(phase.origins)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=6, help="of load in each cell and phase")
    parser.add_argument("--only", choices=("cost", "faults", "semantic"))
    parser.add_argument("--version", type=int, default=7, choices=(7, 8), help="of Redis")
    parser.add_argument("--save", type=Path, default=Path("bench/results/redis.json"))
    asked = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("This bench needs wrk (apt-get install wrk).")
    cells: list[Cell] = []
    phases: dict[str, list[Phase]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_redis(asked.version, Path(folder)) as server,
    ):
        if asked.only in {None, "cost"}:
            print(TITLE)
            rounds = cost(server, asked.seconds)
            print(*verdict(rounds), "", sep="\n")
            cells = [cell for each in rounds.values() for cell in each]
        for name in ("faults", "semantic"):
            if asked.only in {None, name}:
                print(f"{name}:")
                phases[name] = faults(server, asked.seconds, meaning=name == "semantic")
    told = {name: [told_of(phase) for phase in each] for name, each in phases.items()}
    asked.save.parent.mkdir(parents=True, exist_ok=True)
    asked.save.write_text(
        json.dumps({"cost": [asdict(cell) for cell in cells], "faults": told}, indent=1)
    )


if __name__ == "__main__":
    main()
