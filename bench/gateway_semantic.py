"""What answering by meaning costs through the whole gateway: hits, misses, and the embedding.

    python -m bench.gateway_semantic                 # 100,000 questions, in 1 and 1,000 namespaces
    python -m bench.gateway_semantic --entries 0     # an empty cache: half a minute

Method. The server (bench/gateway_semantic_server.py) runs alone on core 0, this client on core 1,
one request after another over one connection, as `bench.gateway` at c=1: what is learnt of a miss
falls on the next one (with pauses between them everything takes longer: processors doze off). The
model is a fake that answers at once. Each question is asked once, so that no vector is remembered
and nothing is an exact hit. Policy static: one repetition in other words hits, and what the
namespace has learnt plays no part; the decision of the bounded policy is timed by itself. The cache
is filled over HTTP, with drawn vectors, kept in SQLite and read back at start. Rows:

    embedding     the server's own span (Server-Timing `embed`), the way to its thread included
    hit           a question in other words
    miss          a question that is near to none, with the semantic cache
    without       the same, with `enabled = false`
    rested        the same, each after a pause as long as an embedding: what it costs to begin with
                  caches that hold something else, or nothing, which a hit pays twice
    beyond        of each hit: its time at the client without its embedding
    layer         of each hit: the server's span `semantic` without its embedding
    encoding      the embedding alone, in process, without the way to its thread
    decision      of the bounded policy, in process

`cpu ms` is the processor time of the whole server (in process: of the thread) for each request: it
stays true where other programs keep the machine busy, which the other columns do not.

Goals: hit p50 ≤ embedding + 1 ms (`beyond`), miss p50 ≤ without p50 + embedding p50 + 1 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from email.parser import Parser
from itertools import product
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from bench.gateway import PORT, cpu_seconds, started
from bench.gateway_answers import KEY
from bench.gateway_semantic_server import EMBEDDERS
from cache.embed import BUNDLED, OnnxEncoder, prepare
from cache.rest import CLOSED_FOR
from cache.verify import SIGNS, Sighting
from cache.verify_budget import Budgeted, Terms

NAMESPACES = 1000
VERBS = "reset open close find move rename share export import print".split()
NOUNS = "password account invoice folder report calendar ticket profile backup contract".split()
PLACES = "the browser,the app,the office,the archive,the portal".split(",")
TOPICS = [f"{verb} my {noun} in {place}" for verb, noun, place in product(VERBS, NOUNS, PLACES)]


@dataclass(frozen=True)
class Row:
    """Milliseconds at the median and the 99th percentile."""

    entries: int
    namespaces: int
    what: str
    count: int
    p50_ms: float
    p99_ms: float
    cpu_ms: float | None = None
    """Mean."""


@dataclass(frozen=True)
class Reply:
    origin: str
    ms: float
    embed_ms: float | None
    layer_ms: float | None


class Client:
    """Over a bare socket: http.client takes as long as the gateway does for a hit."""

    def __init__(self, port: int, process: int) -> None:
        self._process = process
        self._line = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, text: str, namespace: int = 0) -> Reply:
        body = {
            "model": "large",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 256 + namespace,
            "temperature": 0,
        }
        status, headers, said, ms = self._exchange("POST", "/v1/chat/completions", body)
        if status != 200:
            raise SystemExit(f"{status}: {said.decode(errors='replace')}")
        stages = (_stage(headers, name) for name in ("embed", "semantic"))
        return Reply(headers["sluice-origin"], ms, *stages)

    def _exchange(
        self, method: str, path: str, body: object = None
    ) -> tuple[int, Message, bytes, float]:
        """Status, headers, body, and milliseconds from the first byte sent to the last received."""
        content = b"" if body is None else json.dumps(body).encode()
        key = "" if body is None else f"authorization: Bearer {KEY}\r\n"
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{key}"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        sent = head.encode() + content
        began = time.perf_counter()
        self._line.sendall(sent)
        heard = self._line.recv(1 << 16)
        while b"\r\n\r\n" not in heard:
            heard += self._line.recv(1 << 16)
        first, _, said = heard.partition(b"\r\n\r\n")
        told = re.search(rb"(?i)content-length: (\d+)", first)
        assert told is not None, first
        while len(said) < int(told[1]):
            said += self._line.recv(1 << 16)
        ms = (time.perf_counter() - began) * 1e3
        status, _, fields = first.decode("latin-1").partition("\r\n")
        return int(status.split()[1]), Parser().parsestr(fields), said, ms

    def ask_all(self, texts: Sequence[str], pause_s: float = 0.0) -> tuple[list[Reply], float]:
        """The replies, and the server's processor time for each of them in ms."""
        before = cpu_seconds(self._process)
        replies = []
        for text in texts:
            time.sleep(pause_s)
            replies.append(self.ask(text))
        return replies, (cpu_seconds(self._process) - before) * 1e3 / len(texts)

    def caches(self) -> dict[str, object]:
        _, _, said, _ = self._exchange("GET", "/admin/caches?limit=0")
        told: dict[str, object] = json.loads(said)["semantic"]
        return told


def _stage(headers: Message, name: str) -> float | None:
    for stage in headers.get("server-timing", "").split(","):
        called, _, duration = stage.strip().partition(";dur=")
        if called == name:
            return float(duration)
    return None


@contextmanager
def server(home: Path, mode: str, port: int) -> Iterator[Client]:
    """Ready to answer by meaning, unless it is not to."""
    module = [sys.executable, "-m", "bench.gateway_semantic_server"]
    process = started(["taskset", "-c", "0", *module, str(port), str(home), mode], port)
    try:
        client = Client(port, process.pid)
        while mode != "off" and client.caches()["problem"]:
            time.sleep(0.1)
        yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def fill(home: Path, entries: int, namespaces: int, port: int) -> None:
    """Now and then with a question that is known, since a namespace that never hits soon rests."""
    turn = CLOSED_FOR // 2 * namespaces
    with server(home, "fill", port) as client:
        for number in range(entries):
            client.ask(f"filling question {number}", number % namespaces)
            if number % turn >= turn - namespaces:
                client.ask(f"filling question {number} ", number % namespaces)
        kept = 0
        for _ in range(600):  # what was asked last is still being kept
            told = client.caches()["questions"]
            assert isinstance(told, int)
            kept = told
            if kept >= entries:
                return
            time.sleep(0.1)
        raise SystemExit(f"{kept} of {entries} questions were kept")


def strangers(count: int, rng: random.Random) -> list[str]:
    """Numbers differ, and with them the questions."""
    cases = [(rng.randrange(10**9), rng.choice(NOUNS)) for _ in range(count)]
    return [f"Tell me about case {number} of my {noun}" for number, noun in cases]


def measured(home: Path, entries: int, namespaces: int, count: int, port: int) -> list[Row]:
    if entries:
        fill(home, entries, namespaces, port)
    rng = random.Random(0)
    with server(home, "on", port) as client:
        client.ask_all(strangers(50, rng))
        missed, miss_cpu = client.ask_all(strangers(count, rng))
        missed = [one for one in missed if one.origin != "semantic"]
        topics = rng.sample(TOPICS, min(count, len(TOPICS)))
        for topic in topics:
            client.ask(f"How do I {topic}?")
        hits, hit_cpu = client.ask_all([f"How can I {topic}?" for topic in topics])
    hit = [one for one in hits if one.origin == "semantic"]
    embeds = [one.embed_ms for one in (*hit, *missed) if one.embed_ms is not None]
    with server(home, "off", port) as client:
        client.ask_all(strangers(50, rng))
        without, without_cpu = client.ask_all(strangers(count, rng))
        rested, rested_cpu = client.ask_all(strangers(count, rng), statistics.median(embeds) / 1e3)
    rows: dict[str, tuple[list[float], float | None]] = {
        "embedding": (embeds, None),
        "hit": ([one.ms for one in hit], hit_cpu),
        "miss": ([one.ms for one in missed], miss_cpu),
        "without": ([one.ms for one in without], without_cpu),
        "rested": ([one.ms for one in rested], rested_cpu),
        "beyond": ([one.ms - (one.embed_ms or 0.0) for one in hit], None),
        "layer": ([(one.layer_ms or 0.0) - (one.embed_ms or 0.0) for one in hit], None),
    }
    return [row_of(entries, namespaces, what, *measured) for what, measured in rows.items()]


def row_of(
    entries: int, namespaces: int, what: str, times: list[float], cpu_ms: float | None
) -> Row:
    cuts = statistics.quantiles(times, n=100)
    return Row(entries, namespaces, what, len(times), cuts[49], cuts[98], cpu_ms)


def encodings(rounds: int = 300) -> Row:
    """The embedding alone, of the questions that hit."""
    encoder = OnnxEncoder(prepare(BUNDLED, EMBEDDERS))
    texts = [f"How can I {topic}?" for topic in TOPICS[:rounds]]
    times, cpu = [], time.thread_time()
    for text in texts:
        began = time.perf_counter()
        encoder.encode(text)
        times.append((time.perf_counter() - began) * 1e3)
    return row_of(0, 1, "encoding", times, (time.thread_time() - cpu) * 1e3 / len(texts))


def decisions(rounds: int = 5_000) -> Row:
    """Decisions of the bounded policy; one in fifty fits its odds anew."""
    rng, policy = random.Random(1), Budgeted(Terms(0.02), random.Random(2))
    times, cpu = [], time.thread_time()
    for _ in range(rounds):
        one = _sighting(rng.uniform(0.5, 1.0))
        began = time.perf_counter()
        verdict = policy.decide(one, 0.02)
        times.append((time.perf_counter() - began) * 1e3)
        if verdict.action != "serve":
            policy.learn(one, verdict, right=one.similarity > 0.8)
    return row_of(0, 1, "decision", times, (time.thread_time() - cpu) * 1e3 / rounds)


def _sighting(similarity: float) -> Sighting:
    signs = np.zeros(len(SIGNS))
    signs[0], signs[1] = 1.0, similarity
    return Sighting(0, 0, similarity, guarded=False, signs=signs)


def line_of(row: Row) -> str:
    cpu = "" if row.cpu_ms is None else f"{row.cpu_ms:8.3f}"
    return (
        f"{row.entries:8} {row.namespaces:10} {row.what:10} {row.count:5} {row.p50_ms:8.3f} "
        f"{row.p99_ms:8.3f} {cpu}"
    ).rstrip()


def verdict_of(rows: list[Row]) -> str:
    p50 = {row.what: row.p50_ms for row in rows}
    over_miss = p50["miss"] - p50["without"] - p50["embedding"]
    return (
        f"hit − embedding {p50['beyond']:.2f} ms (goal 1); "
        f"miss − without − embedding {over_miss:.2f} ms (goal 1)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--entries", type=int, default=100_000, help="questions kept beforehand")
    parser.add_argument("--count", type=int, default=400, help="requests of a kind")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--save", type=Path, default=Path("bench/results/gateway_semantic.json"))
    asked = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("This bench needs two cores: one for the server and one for the client.")
    os.sched_setaffinity(0, {1})
    told: list[Row] = []
    print(
        f"{'entries':>8} {'namespaces':>10} {'what':10} {'n':>5} {'p50 ms':>8} {'p99 ms':>8} "
        f"{'cpu ms':>8}"
    )
    for namespaces in (1, NAMESPACES) if asked.entries else (1,):
        with tempfile.TemporaryDirectory() as home:
            rows = measured(Path(home), asked.entries, namespaces, asked.count, asked.port)
        print(*map(line_of, rows), sep="\n")
        print(verdict_of(rows), flush=True)
        told += rows
    with threadpool_limits(1, user_api="blas"):  # as the gateway does
        told += [encodings(), decisions()]
    print(*map(line_of, told[-2:]), sep="\n")
    asked.save.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    rows_told = [asdict(row) for row in told]
    asked.save.write_text(json.dumps({"machine": machine, "rows": rows_told}, indent=1))


if __name__ == "__main__":
    main()
