"""What the semantic cache's index costs: time to build, memory, time to search, time to start.

    python -m bench.semantic_speed                       # 1k to 1M, about ten minutes
    python -m bench.semantic_speed --entries 1000,10000

Each row is a process of its own, so that its memory is its own: the resident set after minus
before, over the entries. Vectors have 384 components, as the bundled embedder's; questions are
paraphrases, ten of a subject, drawn around a thousand topics, because random directions are a case
that no text is like.

    index    cache/index.py alone
    space    a whole namespace: question, answer of 1 kB, group, quota
    many     the same entries in namespaces of a hundred
    start    those namespaces read back from SQLite, as a gateway does that starts (its memory is
             that of `many`)

`found` is the share of searches whose nearest is what comparing with everything finds (1,000
searches), `of 8` the share of the eight nearest, which is what a decision looks at
(cache/verify.py). `cpu ms` is processor time at the median, which other programs on the machine do
not lengthen as they do the rest. The time of a hit through the whole gateway is in `python -m
bench.gateway`.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.archive_sqlite import SqliteArchive
from cache.entry import Origin
from cache.index import Index, to_int8
from cache.keeper import Keeper
from cache.key import family_of
from cache.memory import Memory
from cache.namespace import Terms
from cache.quota import Bounds
from cache.semantic import budgeted
from cache.space import Space
from cache.spaces import Spaces
from cache.verify import NEAREST
from cache.verify_facts import read
from tests.support.recordings import recording_of

Vectors = NDArray[np.float32]

DIMENSIONS: Final = 384
SEARCHES: Final = 1000
PER_SPACE: Final = 100
SCOPE: Final = "tenant:bench"
ANSWER: Final = ("word " * 8,) * 25
SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
WHOLE_UP_TO: Final = 100_000
"""Whole namespaces are measured up to here: what is beyond it is the index's."""


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    entries: int
    build_s: float
    us_each: float
    bytes_each: float
    search_p50_ms: float
    search_p99_ms: float
    search_cpu_ms: float
    found: float
    found_of_8: float | None = None


HEADER = "what    entries   build s  µs each  B each  p50 ms  p99 ms  cpu ms  found   of 8"


def show(row: Row) -> str:
    of_8 = "" if row.found_of_8 is None else f"{row.found_of_8:7.1%}"
    held = f"{row.bytes_each:8.0f}" if row.bytes_each else "       -"
    return (
        f"{row.what:6s}{row.entries:9,d}{row.build_s:10.2f}{row.us_each:9.1f}{held}"
        f"{row.search_p50_ms:8.3f}{row.search_p99_ms:8.3f}{row.search_cpu_ms:8.3f}{row.found:7.1%}{of_8}"
    )


def vectors(count: int, rng: np.random.Generator) -> Iterator[Vectors]:
    """(≤ 1,000, DIMENSIONS) at a time, of length 1: a topic, a subject in it, a wording."""
    topics = rng.standard_normal((1000, DIMENSIONS), np.float32)
    for start in range(0, count, 1_000):
        rows = min(1_000, count - start)
        subjects = rng.standard_normal((max(1, rows // 10), DIMENSIONS), np.float32)
        subjects += topics[rng.integers(0, len(topics), len(subjects))]
        wordings = rng.standard_normal((rows, DIMENSIONS), np.float32)
        made = subjects[rng.integers(0, len(subjects), rows)] + 0.5 * wordings
        yield made / np.linalg.norm(made, axis=1, keepdims=True)


def resident_bytes() -> int:
    """Without what was freed and not yet given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Times:
    """Of searches, by the clock and by the processor."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []

    @contextmanager
    def one(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self._cpu.append(time.thread_time() - cpu)
        self._wall.append(time.perf_counter() - wall)

    def ms(self) -> tuple[float, float, float]:
        """p50 and p99 by the clock, p50 by the processor."""
        p50, p99 = np.percentile(self._wall, (50, 99)) * 1e3
        return float(p50), float(p99), float(np.median(self._cpu)) * 1e3


# --------------------------------------------------------------------------- the rows


def index_row(count: int) -> Row:
    rng = np.random.default_rng(1)
    everything = np.ones((count, DIMENSIONS), np.int8)  # all there before memory is measured
    index, before, build_s, at = Index(DIMENSIONS), resident_bytes(), 0.0, 0
    for batch in vectors(count, rng):
        started = time.perf_counter()
        for offset, vector in enumerate(batch):
            index.add(at + offset, vector)
        build_s += time.perf_counter() - started
        for offset, vector in enumerate(batch):
            everything[at + offset] = to_int8(vector)
        at += len(batch)
    del batch
    used = resident_bytes() - before
    asked = _near(everything, rng)
    took, found = Times(), []
    for vector in asked:
        with took.one():
            hits = index.search(vector, NEAREST)
        found.append([key for key, _ in hits])
    true = _nearest(everything, asked)
    first = float(np.mean(np.array(found)[:, 0] == true[:, 0]))
    of_8 = float(
        np.mean([len({*some} & {*all_}) / NEAREST for some, all_ in zip(found, true, strict=True)])
    )
    each = 1e6 * build_s / count
    return Row("index", count, build_s, each, used / count, *took.ms(), first, of_8)


def _near(everything: NDArray[np.int8], rng: np.random.Generator) -> Vectors:
    """Wordings of what is there."""
    chosen = everything[rng.integers(0, len(everything), SEARCHES)].astype(np.float32)
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
    noise = rng.standard_normal(chosen.shape, np.float32) * (0.4 / np.sqrt(DIMENSIONS))
    return (chosen + noise).astype(np.float32)


def _nearest(everything: NDArray[np.int8], asked: Vectors) -> NDArray[np.int64]:
    """(asked, NEAREST): the rows with the largest cosines, largest first."""
    cosines = np.full((len(asked), NEAREST), -2.0, np.float32)
    where = np.zeros((len(asked), NEAREST), np.int64)
    for start in range(0, len(everything), 20_000):
        rows = everything[start : start + 20_000].astype(np.float32)
        here = asked @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
        best = np.argpartition(-here, NEAREST - 1, axis=1)[:, :NEAREST]
        cosines = np.concatenate([cosines, np.take_along_axis(here, best, 1)], axis=1)
        where = np.concatenate([where, start + best], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
        cosines = np.take_along_axis(cosines, order, 1)
        where = np.take_along_axis(where, order, 1)
    return where


def spaces_of(count: int, per_space: int, keeper: Keeper | None) -> Spaces:
    return Spaces(
        policy_of=budgeted,
        dimensions=lambda: DIMENSIONS,
        bounds=Bounds(2 * count, 2 * count, count // per_space + 1),
        max_spaces=count // per_space + 1,
        keeper=keeper,
        clock=time.time,
        memory=Memory(1 << 40),
    )


def space_at(spaces: Spaces, number: int) -> Space:
    namespace = number.to_bytes(8, "big") * 3 + family_of(SCOPE)
    return spaces.open(Origin(namespace, SCOPE, "small"), Terms(max_error=0.01), "default")


async def filled(spaces: Spaces, count: int, per_space: int, keeper: Keeper | None) -> float:
    """Seconds that adding took."""
    took, at = 0.0, 0
    for batch in vectors(count, np.random.default_rng(1)):
        for vector in batch:
            recording = recording_of(*ANSWER, stored_at=time.time(), ttl_s=1e6, scope=SCOPE)
            started = time.perf_counter()
            space = space_at(spaces, at // per_space)
            question = f"how do I do what people do with number {at} of these things?"
            key = space.add(question, vector, recording, owner="bench")
            took += time.perf_counter() - started
            if keeper is not None:
                await keeper.keep(space, key, vector)
                if at % 1000 == 0:
                    await keeper.flush()
            at += 1
    return took


async def spaces_row(what: str, count: int, per_space: int) -> Row:
    spaces, before = spaces_of(count, per_space, None), resident_bytes()
    build_s = await filled(spaces, count, per_space, None)
    used = resident_bytes() - before
    return _looked_up(what, spaces, count, per_space, build_s, used)


async def start_row(count: int, folder: Path) -> Row:
    def keeper() -> Keeper:
        return Keeper(SqliteArchive(folder / "semantic.db", 1 << 40, count))

    writing = keeper()
    first = spaces_of(count, PER_SPACE, writing)
    await first.restore(lambda _: Terms(max_error=0.01))
    await filled(first, count, PER_SPACE, writing)
    await first.close()
    del first
    started = time.perf_counter()
    again = spaces_of(count, PER_SPACE, keeper())
    questions = await again.restore(lambda _: Terms(max_error=0.01))
    build_s = time.perf_counter() - started
    if questions != count:
        raise SystemExit(f"{questions} of {count} questions came back")
    row = _looked_up("start", again, count, PER_SPACE, build_s, 0)
    await again.close()
    return row


def _looked_up(
    what: str, spaces: Spaces, count: int, per_space: int, build_s: float, used: int
) -> Row:
    rng, took, found = np.random.default_rng(2), Times(), 0
    asked = np.concatenate(list(vectors(min(count, 10_000), np.random.default_rng(1))))
    facts = read("how do I do what people do with these things?")
    for at in rng.integers(0, len(asked), SEARCHES):
        with took.one():
            space = space_at(spaces, int(at) // per_space)
            seen = space.look(facts, asked[at], time.time())
        found += seen is not None and f"number {at} " in seen.entry.question
    each = 1e6 * build_s / count
    return Row(what, count, build_s, each, used / count, *took.ms(), found / SEARCHES)


async def measured(what: str, count: int) -> Row:
    if what == "index":
        return index_row(count)
    if what == "start":
        with tempfile.TemporaryDirectory() as folder:
            return await start_row(count, Path(folder))
    return await spaces_row(what, count, count if what == "space" else PER_SPACE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", default=",".join(map(str, SIZES)))
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    parser.add_argument("--row", nargs=2, metavar=("WHAT", "ENTRIES"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        row = asyncio.run(measured(asked.row[0], int(asked.row[1])))
        sys.stdout.write(json.dumps(asdict(row)))
        return
    print(HEADER)
    rows = []
    for what in ("index", "space", "many", "start"):
        for count in map(int, asked.entries.split(",")):
            if what != "index" and count > WHOLE_UP_TO:
                continue
            command = [sys.executable, "-m", "bench.semantic_speed", "--row", what, str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(Row(**json.loads(done.stdout)))
            print(show(rows[-1]), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
