"""What serving takes from the engine: the whole gateway, streaming, beside the engine alone.

    python -m bench.serve [--shape 0.6b] [--shape 8b] [--engine-process shared|own|both]
    python -m bench.serve --shape fake [--step-ms 5 --host-ms 2]     without a GPU

The server (bench/serve_server.py) and the clients run on the machine of the GPU, each client in a
process of its own. Requests are /v1/completions of 512 random token ids, 128 tokens out, streamed,
each prompt new; keys, limits, ledger, exact cache, join, metrics and logs are on. The engine is in
the gateway's process or in its own (`[engine] process`).

    closed     128 streams, a new request when one ends: tokens/s, the share of the engine alone,
               and the processor time of each process for a token
    Poisson    arrivals at 80 % of the closed loop's rate: time per output token of each request
               (last − first token over the tokens between), p50 and p99
    both       time between two deliveries of one stream, of whatever number of tokens: p50, p99 and
               the longest, which bundles (engine/mailbox.py) make longer and TPOT does not show

The fake engine takes --step-ms a step on its "device", whatever is in it, and burns --host-ms of
its thread's time for each under Python's lock; the rest of it is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.gateway_answers import KEY

RESULTS = Path(__file__).parent / "results" / "serve.json"
HOST, PORT = "127.0.0.1", 18_090
NAME = "large"
PROMPT, WANTED, STREAMS, EACH = 512, 128, 128, 5
CLIENTS = 4


@dataclass(frozen=True)
class Seen:
    """One request, as its client saw it. Seconds."""

    tokens: int
    began: float
    first: float
    last: float
    gaps: tuple[float, ...]
    """Between one delivery and the next."""

    @property
    def tpot_ms(self) -> float:
        return (self.last - self.first) / max(1, self.tokens - 1) * 1e3


async def ask(prompt: list[int]) -> Seen:
    """One streamed request on a connection of its own."""
    body = json.dumps(
        {
            "model": NAME,
            "prompt": prompt,
            "max_tokens": WANTED,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, PORT)
    writer.write((head + body).encode())
    came: list[float] = []
    tail, status = b"", b""
    try:
        while piece := await reader.read(65536):
            status = status or piece[:64]
            if b"data: {" in piece:
                came.append(time.perf_counter())
            tail = (tail + piece)[-2000:]
    finally:
        writer.close()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r} … {tail!r}")
    usage = [line for line in tail.split(b"\n") if b'"usage":{' in line][-1]
    tokens = json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"]
    gaps = tuple(later - sooner for sooner, later in pairwise(came))
    return Seen(tokens, began, came[0], came[-1], gaps)


async def closed_loop(rng: np.random.Generator, vocab: int, streams: int, each: int) -> list[Seen]:
    async def one() -> list[Seen]:
        return [await ask(rng.integers(10, vocab, PROMPT).tolist()) for _ in range(each)]

    return [
        seen for some in await asyncio.gather(*(one() for _ in range(streams))) for seen in some
    ]


async def poisson(rng: np.random.Generator, vocab: int, rate: float, until: float) -> list[Seen]:
    asked = []
    while time.perf_counter() < until:
        await asyncio.sleep(rng.exponential(1 / rate))
        asked.append(asyncio.create_task(ask(rng.integers(10, vocab, PROMPT).tolist())))
    return await asyncio.gather(*asked)


def client(number: int, how: str, value: float, amount: float, vocab: int, out: Any) -> None:
    """A client's process: `value` streams of `amount` requests each, or `value` requests a second
    for `amount` seconds."""
    rng = np.random.default_rng([number, int(time.time())])
    if how == "closed":
        out.put(asyncio.run(closed_loop(rng, vocab, int(value), int(amount))))
    else:
        until = time.perf_counter() + amount
        out.put(asyncio.run(poisson(rng, vocab, value, until)))


def all_clients(how: str, value: float, amount: float, vocab: int) -> list[Seen]:
    """What all clients saw; `value` is shared among them."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    each = [
        context.Process(target=client, args=(at, how, value / CLIENTS, amount, vocab, out))
        for at in range(CLIENTS)
    ]
    for process in each:
        process.start()
    seen = [one for _ in each for one in out.get(timeout=180)]
    for process in each:
        process.join()
    return seen


def gaps_ms(seen: list[Seen]) -> dict[str, float]:
    """Between deliveries, of all streams together."""
    gaps = sorted(gap * 1e3 for one in seen for gap in one.gaps)
    return {"p50": statistics.median(gaps), "p99": gaps[len(gaps) * 99 // 100], "max": gaps[-1]}


def speed(seen: list[Seen]) -> float:
    """Tokens a second from the first request's beginning to the last answer's end, as the engine
    alone is measured."""
    taken = max(one.last for one in seen) - min(one.began for one in seen)
    return sum(one.tokens for one in seen) / taken


def wait_for(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The server's first line; then until it answers."""
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    for _ in range(600):
        try:
            asyncio.run(ask([11] * 20))
        except OSError:
            time.sleep(0.1)
        else:
            return told
    raise SystemExit("the server does not answer")


def processor_s(server: int) -> dict[str, float]:
    """Seconds of processor time so far: of the server's process, and of its engine's, if it has
    one of its own."""
    tick = os.sysconf("SC_CLK_TCK")
    spent = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(path.parent.name), path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        if server in {pid, int(rest[1])}:
            name = "gateway" if pid == server else "engine"
            spent[name] = (int(rest[11]) + int(rest[12])) / tick
    return spent


@dataclass(frozen=True)
class Setup:
    """What is measured. `shape` as bench/serve_engine.py reads it."""

    shape: str
    process: str
    vocab: int
    seconds: float


def measure(setup: Setup) -> dict[str, Any]:
    vocab = setup.vocab
    command = [sys.executable, "-m", "bench.serve_server", str(PORT), setup.shape, setup.process]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            told = wait_for(process)
            all_clients("closed", STREAMS, 2, vocab)
            before = processor_s(process.pid)
            closed = all_clients("closed", STREAMS, EACH, vocab)
            after = processor_s(process.pid)
            served = speed(closed)
            rate = 0.8 * served / WANTED
            open_ = all_clients("poisson", rate, setup.seconds, vocab)
        finally:
            process.terminate()
    tpot = sorted(one.tpot_ms for one in open_)
    ttft = sorted((one.first - one.began) * 1e3 for one in open_)
    tokens = sum(one.tokens for one in closed)
    row = {
        "shape": setup.shape,
        "process": setup.process,
        **told,
        "served": served,
        "share": served / told["alone"],
        "us_per_token": {name: (after[name] - before[name]) / tokens * 1e6 for name in after},
        "requests": len(closed),
        "poisson_rps": rate,
        "tpot_p50_ms": statistics.median(tpot),
        "tpot_p99_ms": tpot[len(tpot) * 99 // 100],
        "ttft_p50_ms": statistics.median(ttft),
        "ttft_p99_ms": ttft[len(ttft) * 99 // 100],
        "gaps_ms": gaps_ms(open_),
        "closed_gaps_ms": gaps_ms(closed),
        "closed_tpot_p50_ms": statistics.median(one.tpot_ms for one in closed),
    }
    show(row)
    return row


def show(row: dict[str, Any]) -> None:
    spent = ", ".join(f"{name} {us:.0f} µs" for name, us in row["us_per_token"].items())
    print(
        f"{row['shape']:>5} on {row['card']}, process {row['process']}:"
        f" alone {row['alone']:,.0f} tok/s, served {row['served']:,.0f}"
        f" ({row['share']:.0%}; goal 90 %); a token takes {spent};"
        f" at {row['poisson_rps']:.0f} requests/s TPOT p50"
        f" {row['tpot_p50_ms']:.2f} ms, p99 {row['tpot_p99_ms']:.2f}"
        f" (× {row['tpot_p99_ms'] / row['tpot_p50_ms']:.2f}; goal 1.5), TTFT p50"
        f" {row['ttft_p50_ms']:.0f} ms, p99 {row['ttft_p99_ms']:.0f};"
        f" between deliveries {told_of(row['gaps_ms'])},"
        f" of {STREAMS} streams {told_of(row['closed_gaps_ms'])}",
        flush=True,
    )


def told_of(gaps: dict[str, float]) -> str:
    return f"p50 {gaps['p50']:.1f} ms, p99 {gaps['p99']:.1f}, longest {gaps['max']:.1f}"


def setups(options: argparse.Namespace) -> list[Setup]:
    from bench.engine_gpu_shapes import SHAPES

    both = ["shared", "own"] if options.engine_process == "both" else [options.engine_process]
    made = []
    for shape in options.shape or ["0.6b", "8b"]:
        vocab = int(SHAPES["tiny" if shape == "fake" else shape]["vocab_size"])
        path = f"fake/{options.step_ms}/{options.host_ms}" if shape == "fake" else shape
        made += [Setup(path, process, vocab, options.seconds) for process in both]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", action="append", choices=["8b", "0.6b", "tiny", "fake"])
    parser.add_argument("--engine-process", choices=["shared", "own", "both"], default="both")
    parser.add_argument("--step-ms", type=float, default=5.0, help="fake: a step on the device")
    parser.add_argument("--host-ms", type=float, default=2.0, help="fake: of the host, for a step")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = [measure(setup) for setup in setups(options)]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
