"""What many tenants cost, and what one costs another.

    python -m bench.tenants                    # both parts, about seven minutes
    python -m bench.tenants --requests 2000 --only overhead
    python -m bench.tenants --only noise --seconds 20

Overhead. 1,000 tenants of 100 keys each (half of them hashes in the settings, half stored keys),
each with every limit and policy there is, beside a gateway of one tenant without a key or a limit.
Both run in this process and are asked in turn, request by request, past HTTP: what is measured is
the way from the ASGI call to the last byte, on a model that answers at once. Each request is
another tenant's, with another of its keys; each tenant has asked once before. `added` is the
difference of the medians.

    hit     an exact hit: key, policy, requests per minute, requests in flight
    pass    `no-store`: those, and tokens per minute, budget of the day and of the month

Noise (bench/tenants_noise.py). Two tenants with equal shares on a real engine. One asks at half of
its share, alone and then while the other floods with 20 times its share. What counts is its time to
the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.tenants_noise import Noise, measure_noise
from gateway.assemble import System, assemble
from gateway.backend import PlainBackend
from gateway.catalog import ModelCard
from gateway.configure import Loaded
from gateway.observe.logs import LineWriter, build_log
from gateway.parts.keys import build_key_store
from gateway.settings import ExactCache, Keys, LedgerSettings, Limits, Model, Settings, Tenant
from gateway.tenants.key import mint
from tests.support.fake import FakeModel

GOAL_MS = 0.2
GOAL_RATIO = 1.5
QUESTION = "Explain in a few sentences why the sky is blue, and why it is red in the evening."


@dataclass(frozen=True)
class Cell:
    """Milliseconds a request."""

    what: str
    plain_p50: float
    tenants_p50: float
    added_p50: float
    plain_p99: float
    tenants_p99: float


def tenants_with_keys(tenants: int, keys: int) -> tuple[tuple[Tenant, ...], list[list[str]]]:
    """Tenants with every limit there is, none of which is reached, and their keys of the file."""
    texts = [[f"file-key-{t}-{k}" for k in range(keys // 2)] for t in range(tenants)]
    made = tuple(
        Tenant(
            name=f"tenant-{t}",
            keys=tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts[t]),
            stored_keys=True,
            rpm=10_000_000,
            tpm=1_000_000_000,
            max_concurrent=1000,
            budget_usd_day=100_000.0,
            budget_usd_month=1_000_000.0,
            models=("small", "large", "auto"),
            aliases={"gpt-4o": "large", "gpt-4o-mini": "small"},
            max_tokens=4096,
            cache_ttl_s=3600.0,
        )
        for t in range(tenants)
    )
    return made, texts


@contextmanager
def system_of(folder: Path, store: str, tenants: tuple[Tenant, ...]) -> Iterator[System]:
    names = ("small", "large")
    settings = Settings(
        models={name: Model(path=Path()) for name in names},
        exact=ExactCache(store="memory://"),
        keys=Keys(store=f"sqlite:///{folder / 'keys.db'}"),
        limits=Limits(store=store or f"sqlite:///{folder / 'limits.db'}"),
        ledger=LedgerSettings(store="memory://"),
        tenants=tenants,
    )
    models = {name: FakeModel(name=name, keep=False) for name in names}
    cards = {name: ModelCard(name, name * 8, 4096, 1.0, 2.0) for name in names}
    writer = LineWriter((folder / "log").open("wb"))
    log = build_log(writer, "info", as_json=True)
    try:
        yield assemble(Loaded(settings), PlainBackend(models, cards), log)
    finally:
        writer.close()


def stored_keys(folder: Path, tenants: tuple[Tenant, ...], keys: int) -> list[list[str]]:
    """Makes them in the store that the gateway reads at its start."""
    store = build_key_store(Keys(store=f"sqlite:///{folder / 'keys.db'}"))
    minted = [[mint(tenant.name, time.time()) for _ in range(keys)] for tenant in tenants]
    store.put(one.key for group in minted for one in group)
    store.close()
    return [[one.text for one in group] for group in minted]


@asynccontextmanager
async def alive(system: System) -> AsyncIterator[None]:
    """Between the start and the end of its lifespan, as a server would tell it."""
    to_app: asyncio.Queue[Any] = asyncio.Queue()
    from_app: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(
        system.app({"type": "lifespan", "asgi": {"version": "3.0"}}, to_app.get, from_app.put)
    )
    for step in ("startup", "shutdown"):
        await to_app.put({"type": f"lifespan.{step}"})
        told = await from_app.get()
        if told["type"] != f"lifespan.{step}.complete":
            raise SystemExit(f"the gateway said {told}")
        if step == "startup":
            yield
    await task


# --------------------------------------------------------------------------- one request


async def ask(system: System, body: bytes, headers: list[tuple[bytes, bytes]]) -> float:
    """Milliseconds of one request, past HTTP."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])
    never = asyncio.get_running_loop().create_future()
    status = 0

    async def receive() -> Any:
        return next(messages, None) or await never

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080), "scheme": "http",
        "http_version": "1.1", "query_string": b"", "raw_path": b"/v1/chat/completions",
    }  # fmt: skip
    started = time.perf_counter()
    await system.app(scope, receive, send)
    taken = (time.perf_counter() - started) * 1e3
    if status != 200:
        raise SystemExit(f"a request was answered with {status}")
    return taken


def body_of(text: str) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "large", "messages": messages, "max_tokens": 64}).encode()


async def compare(
    plain: System, many: System, keys: list[list[str]], what: str, requests: int
) -> Cell:
    draw = random.Random(5)
    times: dict[str, list[float]] = {"plain": [], "many": []}
    extra = [(b"cache-control", b"no-store")] if what == "pass" else []
    body = body_of(QUESTION)
    for texts in keys:
        await ask(many, body, [(b"authorization", f"Bearer {texts[0]}".encode()), *extra])
    await ask(plain, body, extra)
    for _ in range(requests):
        key = draw.choice(draw.choice(keys))
        given = [(b"authorization", f"Bearer {key}".encode()), *extra]
        times["plain"].append(await ask(plain, body, extra))
        times["many"].append(await ask(many, body, given))
    p50 = {name: statistics.median(values) for name, values in times.items()}
    p99 = {name: statistics.quantiles(values, n=100)[98] for name, values in times.items()}
    added = p50["many"] - p50["plain"]
    return Cell(what, p50["plain"], p50["many"], added, p99["plain"], p99["many"])


async def overhead(folder: Path, asked: argparse.Namespace) -> list[Cell]:
    tenants, keys = tenants_with_keys(asked.tenants, asked.keys)
    stored = stored_keys(folder, tenants, asked.keys - asked.keys // 2)
    keys = [group + more for group, more in zip(keys, stored, strict=True)]
    alone = folder / "plain"
    alone.mkdir()
    with (
        system_of(alone, "memory://", (Tenant(name="default"),)) as plain,
        system_of(folder, asked.store, tenants) as many,
    ):
        started = time.perf_counter()
        async with alive(plain), alive(many):
            print(f"{asked.tenants} tenants × {asked.keys} keys read in "
                  f"{time.perf_counter() - started:.1f} s")  # fmt: skip
            gc.collect()
            gc.freeze()
            return [
                await compare(plain, many, keys, what, asked.requests) for what in ("hit", "pass")
            ]


# --------------------------------------------------------------------------- what is printed


def show(cells: list[Cell], noises: list[Noise]) -> None:
    if cells:
        print(f"\n{'ms a request':<14}{'plain p50':>10}{'p50':>8}{'added':>8}"
              f"{'plain p99':>11}{'p99':>8}   goal: ≤ {GOAL_MS} added")  # fmt: skip
    for cell in cells:
        print(f"{cell.what:<14}{cell.plain_p50:>10.3f}{cell.tenants_p50:>8.3f}"
              f"{cell.added_p50:>8.3f}{cell.plain_p99:>11.3f}{cell.tenants_p99:>8.3f}"
              f"   {'met' if cell.added_p50 <= GOAL_MS else 'missed'}")  # fmt: skip
    if noises:
        print(f"\n{'TTFT, ms':<26}{'p50':>8}{'p95':>8}{'asked':>7}{'refused':>9}"
              f"{'flooded/s':>11}{'× alone':>9}   goal: p95 ≤ {GOAL_RATIO} ×")  # fmt: skip
    for noise in noises:
        ratio = noise.p95_ms / noises[0].p95_ms
        verdict = "met" if ratio <= GOAL_RATIO else "missed"
        print(f"{noise.what:<26}{noise.p50_ms:>8.1f}{noise.p95_ms:>8.1f}{noise.asked:>7}"
              f"{noise.refused:>9}{noise.flooded_a_second:>11.1f}{ratio:>9.2f}"
              f"   {verdict if noise is not noises[0] else ''}")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", choices=("overhead", "noise"))
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--store", default="", help="[limits] store; default: a SQLite file")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase of noise")
    parser.add_argument("--rounds", type=int, default=6, help="in which the phases take turns")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cells: list[Cell] = []
    noises: list[Noise] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.only != "noise":
            cells = asyncio.run(overhead(folder, asked))
        if asked.only != "overhead":
            noises = measure_noise(folder, asked.seconds, asked.rounds)
    show(cells, noises)
    if asked.json:
        told = {"overhead": [asdict(one) for one in cells], "noise": [asdict(n) for n in noises]}
        asked.json.write_text(json.dumps(told, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
