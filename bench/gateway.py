"""What the gateway itself costs: exact hits and passes, JSON and streams, beside two references.

    python -m bench.gateway                    # everything, about four minutes
    python -m bench.gateway --seconds 3 --only sluice

Method. The server runs alone on core 0, wrk on core 1, so a rate is a rate per core. One process.
Every layer is on: keys, limits, ledger, metrics, exact cache, join, and JSON logs at info (to a
file). The model is a fake that answers at once with 35 pieces (about 110 tokens), so that
what is measured is the gateway. Rows:

    exact hit     one prompt, asked again and again
    miss          every prompt is new: the whole onion, the join's task, and storing the answer
    pass          `Cache-Control: no-store`: the whole onion and nothing kept
    bare ASGI     reference: uvicorn, parse, canonical SHA-256, a dict; a canned response
    Starlette     the same as a Starlette route

Answers by meaning are measured by bench/gateway_semantic.py, beside the time of an embedding.

CPU per request is user + system time of the server process from /proc over the requests served;
memory is the proportional set size when the cell ends. `other` is the share of core 0 that went to
other processes meanwhile: numbers with more than a few percent there are not worth quoting.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.gateway_answers import KEY

ROOT = Path(__file__).resolve().parent.parent
PORT = 18_080
PROMPT = "Explain in a few sentences why the sky is blue, and why it is red in the evening."
SERVERS = {
    "sluice": "bench.gateway_server",
    "asgi": "bench.gateway_asgi",
    "starlette": "bench.gateway_starlette",
}


@dataclass(frozen=True)
class Cell:
    """One measured cell. Latencies in ms, memory in MiB."""

    server: str
    what: str
    shape: str
    connections: int
    rps: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    pss_mib: float
    other_cpu: float
    errors: int


# --------------------------------------------------------------------------- the load

LUA = """
local n = 0
local body = %(body)s
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %(key)s"
%(headers)s
request = function()
  n = n + 1
  local text = body
  if %(unique)s then text = string.gsub(body, "@", tostring(n) .. "-" .. "%(salt)s") end
  return wrk.format(nil, nil, nil, text)
end
done = function(summary, latency)
  io.write(string.format("RESULT %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
"""


def load(what: str, stream: bool, connections: int, seconds: int, port: int) -> list[int]:
    """Run wrk on core 1: [requests, duration µs, p50 µs, p99 µs, errors]."""
    request = {
        "model": "large",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": f"@ {PROMPT}"},
        ],
        "max_tokens": 256,
        "temperature": 0,
        "stream": stream,
    }
    script = LUA % {
        "body": json.dumps(json.dumps(request)),
        "key": KEY,
        "unique": "true" if what == "miss" else "false",
        "salt": f"{time.time():.6f}",
        "headers": 'wrk.headers["Cache-Control"] = "no-store"' if what == "pass" else "",
    }
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s",
                   "-s", file.name, f"http://127.0.0.1:{port}/v1/chat/completions"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    if found is None:
        raise SystemExit(f"wrk said nothing that can be read:\n{done.stdout}{done.stderr}")
    return [int(number) for number in found.groups()]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def core_busy_seconds(core: int) -> float:
    """User, nice, system, irq, softirq and steal time of a core."""
    line = next(
        one for one in Path("/proc/stat").read_text().splitlines() if one.startswith(f"cpu{core} ")
    )
    fields = [int(text) for text in line.split()[1:]]
    return sum(fields[i] for i in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")


def pss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) / 1024 if found else float("nan")


def measure(server: str, pid: int, what: str, stream: bool, connections: int, seconds: int,
            port: int) -> Cell:  # fmt: skip
    load(what, stream, connections, 1, port)
    busy, own, began = core_busy_seconds(0), cpu_seconds(pid), time.perf_counter()
    requests, micros, p50, p99, errors = load(what, stream, connections, seconds, port)
    wall = time.perf_counter() - began
    used = cpu_seconds(pid) - own
    other = max(0.0, core_busy_seconds(0) - busy - used) / wall
    return Cell(
        server=server,
        what=what,
        shape="stream" if stream else "json",
        connections=connections,
        rps=requests / (micros / 1e6),
        p50_ms=p50 / 1e3,
        p99_ms=p99 / 1e3,
        cpu_ms=used * 1e3 / max(1, requests),
        pss_mib=pss_mib(pid),
        other_cpu=other,
        errors=errors,
    )


def started(command: Sequence[str], port: int) -> subprocess.Popen[bytes]:
    """The server process, once it answers."""
    process = subprocess.Popen(command, cwd=ROOT)
    url = f"http://127.0.0.1:{port}/healthz"
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError:
            return process
        except OSError:
            time.sleep(0.1)
            continue
        return process
    process.kill()
    raise SystemExit(f"{' '.join(command)} did not start")


def run(servers: Sequence[str], whats: Sequence[str], seconds: int, port: int) -> list[Cell]:
    cells = []
    for server in servers:
        command = [sys.executable, "-m", SERVERS[server], str(port)]
        process = started(["taskset", "-c", "0", *command], port)
        try:
            for what in whats if server == "sluice" else ("hit",):
                for stream in (False, True):
                    for connections in (1, 32):
                        cell = measure(server, process.pid, what, stream, connections, seconds,
                                       port)  # fmt: skip
                        cells.append(cell)
                        print(line_of(cell), flush=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
    return cells


TITLE = f"{'server':10} {'what':5} {'shape':7} {'c':>3} {'rps':>8} {'p50 ms':>8} {'p99 ms':>8} \
{'CPU ms':>8} {'PSS MiB':>8} {'other':>6} {'errors':>6}"


def line_of(cell: Cell) -> str:
    return (
        f"{cell.server:10} {cell.what:5} {cell.shape:7} {cell.connections:3} {cell.rps:8.0f} "
        f"{cell.p50_ms:8.3f} {cell.p99_ms:8.3f} {cell.cpu_ms:8.4f} {cell.pss_mib:8.1f} "
        f"{cell.other_cpu:6.1%} {cell.errors:6}"
    )


def verdict(cells: Sequence[Cell]) -> list[str]:
    """The goals, and what became of them."""

    def find(server: str, what: str, shape: str, connections: int) -> Cell | None:
        wanted = (server, what, shape, connections)
        return next(
            (c for c in cells if (c.server, c.what, c.shape, c.connections) == wanted), None
        )

    hit, one = find("sluice", "hit", "json", 32), find("sluice", "hit", "json", 1)
    stream, reference = find("sluice", "hit", "stream", 32), find("starlette", "hit", "json", 32)
    passed, bare = find("sluice", "pass", "json", 32), find("asgi", "hit", "json", 32)
    told = []
    if hit and reference:
        told.append(f"exact hit / Starlette at c=32: {hit.rps / reference.rps:.2f} (goal 0.50)")
    if one:
        told.append(f"exact hit at c=1: p50 {one.p50_ms:.3f} (0.25), p99 {one.p99_ms:.3f} (0.60)")
    if stream:
        told.append(f"stream hit at c=32: {stream.rps:.0f} rps (goal 6000)")
    if passed and bare:
        own = passed.cpu_ms - bare.cpu_ms
        told.append(f"pass over bare ASGI, CPU ms: {own:.3f} (the onion's own cost; goal 0.100)")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--seconds", type=int, default=8, help="of load in each cell")
    parser.add_argument("--only", choices=SERVERS, help="one server")
    parser.add_argument("--what", choices=("hit", "miss", "pass"), help="one kind of request")
    parser.add_argument("--save", type=Path, default=Path("bench/results/gateway.json"))
    asked = parser.parse_args()
    if shutil.which("wrk") is None or len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("This bench needs wrk (apt-get install wrk) and two cores.")
    print(TITLE)
    servers = (asked.only,) if asked.only else tuple(SERVERS)
    whats = (asked.what,) if asked.what else ("hit", "miss", "pass")
    cells = run(servers, whats, asked.seconds, asked.port)
    print(*verdict(cells), sep="\n")
    asked.save.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    asked.save.write_text(
        json.dumps({"machine": machine, "cells": [asdict(cell) for cell in cells]}, indent=1)
    )


if __name__ == "__main__":
    main()
