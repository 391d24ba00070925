"""The SQLite store: what survives, what is moved aside, what never blocks."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from cache.replay import Recording
from cache.store.base import StoreFault, Which
from cache.store.sqlite import SqliteStore
from cache.store.sqlite_file import SCHEMA_VERSION
from cache.store.sqlite_open import integrity
from tests.support.recordings import FakeClock, key_number, recording_of
from tests.support.speakers import eventually

ROOM = 1 << 22


async def opened(path: Path, **options: object) -> SqliteStore:
    store = SqliteStore(
        path,
        options.pop("max_bytes", ROOM),  # type: ignore[arg-type]
        clock=options.pop("clock", FakeClock()),  # type: ignore[arg-type]
        **{"read_timeout_s": 5.0, **options},  # type: ignore[arg-type]
    )
    await store.open()
    return store


async def test_entries_survive_closing_and_opening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache.db"
    store = await opened(path)
    recording = recording_of("Par", "is", tags=("a",))
    await store.put(key_number(1), recording)
    await store.close()
    again = await opened(path)
    assert await again.get(key_number(1)) == recording
    stats = await again.stats()
    assert stats.entries == 1
    assert stats.held_bytes > 0
    assert await again.purge(Which(tag="a")) == 1
    await again.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from cache.store.sqlite import SqliteStore
from tests.support.recordings import FakeClock, key_number, recording_of

async def main(path, first):
    store = SqliteStore(Path(path), 1 << 27, clock=FakeClock())
    await store.open()
    number = first
    while True:
        for _ in range(7):
            await store.put(key_number(number), recording_of(str(number), "x" * 3000, tags=("t",)))
            number += 1
        await store.flush()
        print(number, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def write_until_killed(path: Path, first: int, rng: random.Random) -> int:
    """Kills a writing process at some moment; returns how many entries it said are committed."""
    command = [sys.executable, "-c", WRITER, str(path), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(rng.randrange(2, 25))]
        time.sleep(rng.random() * 0.01)
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.stdout.read().split()]
    return said[-1]


def moved_aside(folder: Path) -> list[Path]:
    return list(folder.glob("*.aside-*"))


async def test_a_killed_writer_leaves_nothing_torn_and_loses_nothing_committed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cache.db"
    rng = random.Random(7)
    committed = 0
    for _ in range(6):
        committed = write_until_killed(path, committed, rng)
        assert integrity(path) == "ok"
        store = await opened(path, max_bytes=1 << 27)
        assert not moved_aside(tmp_path)
        assert (await store.stats()).evicted == 0
        for number in range(committed):
            expected = recording_of(str(number), "x" * 3000, tags=("t",))
            assert await store.get(key_number(number)) == expected
        await store.close()
    assert committed > 50


@pytest.mark.parametrize(
    "content", [b"", b"not a database at all, but long enough to look at" * 100, b"\0" * 9000]
)
async def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache.db"
    path.write_bytes(content)
    told: list[str] = []
    store = await opened(path, on_event=told.append)
    await store.put(key_number(1), recording_of("a"))
    await store.flush()
    assert await store.get(key_number(1)) == recording_of("a")
    await store.close()
    aside = moved_aside(tmp_path)
    assert [part.read_bytes() for part in aside] == ([content] if content else [])
    assert len(told) == len(aside)
    assert all("can be deleted" in text for text in told)


async def test_another_schema_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    told: list[str] = []
    store = await opened(path, on_event=told.append)
    await store.put(key_number(1), recording_of("a"))
    await store.close()
    assert f"schema is {SCHEMA_VERSION + 1}" in told[0]
    assert len(moved_aside(tmp_path)) == 1


async def test_a_file_that_breaks_while_it_is_used_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    told: list[str] = []
    store = await opened(path, on_event=told.append)
    for number in range(200):
        await store.put(key_number(number), recording_of("x" * 2000))
    await store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(size - 8192))
    store = await opened(path, on_event=told.append)
    for number in range(200):
        try:
            found = await store.get(key_number(number))
        except StoreFault:
            continue
        assert found in (None, recording_of("x" * 2000))
    await store.put(key_number(7), recording_of("new"))
    await store.flush()
    await store.put(key_number(7), recording_of("new"))
    await store.flush()
    assert await store.get(key_number(7)) == recording_of("new")
    assert any("was moved to" in text for text in told)
    await store.close()
    assert integrity(path) == "ok"


async def test_a_folder_that_cannot_be_made_is_a_fault_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = SqliteStore(tmp_path / "file" / "cache.db", ROOM)
    with pytest.raises(StoreFault, match="may be written to"):
        await store.open()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = await opened(tmp_path / "cache.db")
    await store.close()
    with pytest.raises(StoreFault, match="not open"):
        await store.get(key_number(1))
    with pytest.raises(StoreFault, match="not open"):
        await store.put(key_number(1), recording_of("a"))


async def test_a_slow_disk_is_a_fault_and_not_a_wait(tmp_path: Path) -> None:
    store = await opened(tmp_path / "cache.db", read_timeout_s=0.02)
    await store.put(key_number(1), recording_of("a"))
    await store.flush()
    stuck = threading.Event()
    read = store._reader.read

    def slow(key: bytes) -> Recording | None:
        stuck.wait()
        return read(key)

    store._reader.read = slow  # type: ignore[method-assign]
    with pytest.raises(StoreFault, match="within"):
        await store.get(key_number(1))
    stuck.set()
    assert (await store.stats()).faults == 1
    await store.close()


async def test_a_full_queue_drops_writes_and_counts_them(tmp_path: Path) -> None:
    store = await opened(tmp_path / "cache.db", queue_bytes=10_000)
    for number in range(100):
        await store.put(key_number(number), recording_of("x" * 1000))
    dropped = (await store.stats()).dropped
    assert dropped > 50
    await store.flush()
    await asyncio.sleep(0)
    assert store._pending == {}
    assert store._pending_bytes == 0
    await store.put(key_number(1), recording_of("fits"))
    assert await store.get(key_number(1)) == recording_of("fits")
    await store.close()


async def test_a_write_that_fails_costs_its_batch_only(tmp_path: Path) -> None:
    told: list[str] = []
    store = await opened(tmp_path / "cache.db", on_event=told.append)
    await store.put(key_number(1), recording_of("bad", scope="half a pair \ud800"))
    await store.flush()
    await store.put(key_number(2), recording_of("good"))
    await store.flush()
    assert await store.get(key_number(1)) is None
    assert await store.get(key_number(2)) == recording_of("good")
    assert len(told) == 1
    assert (await store.stats()).entries == 1
    await store.close()


async def test_a_sweep_deletes_what_has_expired(tmp_path: Path) -> None:
    clock = FakeClock()
    store = await opened(tmp_path / "cache.db", clock=clock, sweep_every_s=0.02)
    await store.put(key_number(1), recording_of("a", ttl_s=10))
    await store.put(key_number(2), recording_of("b", ttl_s=1000))
    await store.flush()
    clock.now += 11

    async def swept() -> bool:
        return (await store.stats()).entries == 1

    await eventually(swept)
    stats = await store.stats()
    assert (stats.entries, stats.expired) == (1, 1)
    await store.close()


async def test_two_processes_can_share_a_file(tmp_path: Path) -> None:
    """Each finds the other's entries after its next sweep."""
    one = await opened(tmp_path / "cache.db", sweep_every_s=0.02)
    two = await opened(tmp_path / "cache.db", sweep_every_s=0.02)
    await one.put(key_number(1), recording_of("a"))
    await one.flush()
    await eventually(lambda: two.get(key_number(1)))
    assert await two.get(key_number(1)) == recording_of("a")
    await one.purge(Which(key=key_number(1)))
    assert await two.get(key_number(1)) is None
    await one.close()
    await two.close()


async def test_what_was_purged_during_a_read_is_not_given(tmp_path: Path) -> None:
    store = await opened(tmp_path / "cache.db")
    await store.put(key_number(1), recording_of("a"))
    await store.flush()
    reading, go_on = threading.Event(), threading.Event()
    read = store._reader.read

    def halting(key: bytes) -> Recording | None:
        recording = read(key)
        reading.set()
        go_on.wait()
        return recording

    store._reader.read = halting  # type: ignore[method-assign]
    asked = asyncio.create_task(store.get(key_number(1)))
    await asyncio.to_thread(reading.wait)
    await store.purge(Which())
    go_on.set()
    assert await asked is None
    await store.close()


async def test_what_is_read_often_outlives_what_is_not(tmp_path: Path) -> None:
    store = await opened(tmp_path / "cache.db", max_bytes=30_000)
    await store.put(key_number(0), recording_of("word " * 100))
    for number in range(1, 100):
        await store.put(key_number(number), recording_of("word " * 100))
        await store.get(key_number(0))
        await store.flush()
    assert await store.get(key_number(0)) is not None
    assert (await store.stats()).evicted > 50
    await store.close()


def malformed() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


async def test_many_reads_that_find_the_file_broken_replace_it_once(tmp_path: Path) -> None:
    told: list[str] = []
    store = await opened(tmp_path / "cache.db", on_event=told.append)
    for number in range(5):
        await store.put(key_number(number), recording_of("a"))
    await store.flush()
    read = store._reader.read

    def broken(key: bytes) -> Recording | None:
        raise malformed()

    store._reader.read = broken  # type: ignore[method-assign]
    gets = [store.get(key_number(number)) for number in range(5)]
    results = await asyncio.gather(*gets, return_exceptions=True)
    assert [type(result) for result in results] == [StoreFault] * 5
    store._reader.read = read  # type: ignore[method-assign]
    await store.flush()
    assert len(told) == 1
    assert (await store.stats()).entries == 0
    await store.put(key_number(9), recording_of("b"))
    await store.flush()
    assert await store.get(key_number(9)) == recording_of("b")
    await store.close()


async def test_a_write_that_finds_the_file_broken_replaces_it(tmp_path: Path) -> None:
    told: list[str] = []
    store = await opened(tmp_path / "cache.db", on_event=told.append)
    write = store._file.write

    def broken(batch: object) -> None:
        raise malformed()

    store._file.write = broken  # type: ignore[method-assign, assignment]
    await store.put(key_number(1), recording_of("lost"))
    await store.flush()
    store._file.write = write  # type: ignore[method-assign]
    assert any("was moved to" in text for text in told)
    await store.put(key_number(2), recording_of("kept"))
    await store.flush()
    assert await store.get(key_number(2)) == recording_of("kept")
    await store.close()


async def test_a_purge_that_fails_says_so_and_the_store_goes_on(tmp_path: Path) -> None:
    store = await opened(tmp_path / "cache.db")
    purge = store._file.purge

    def locked(which: Which) -> int:
        raise sqlite3.OperationalError("database is locked")

    store._file.purge = locked  # type: ignore[method-assign]
    with pytest.raises(StoreFault, match="Nothing was purged"):
        await store.purge(Which())
    store._file.purge = purge  # type: ignore[method-assign]
    await store.put(key_number(1), recording_of("a"))
    assert await store.purge(Which()) == 1
    await store.close()


async def test_one_scope_fills_its_own_room_and_nobody_elses(tmp_path: Path) -> None:
    store = await opened(tmp_path / "cache.db", max_bytes=200_000, scope_bytes=20_000)
    await store.put(key_number(0, "bob"), recording_of("kept", scope="bob"))
    for number in range(1, 200):
        await store.put(key_number(number), recording_of("word " * 200, prompt_tokens=9_999))
    await store.flush()
    stats = await store.stats()
    assert await store.get(key_number(0, "bob")) is not None
    assert stats.evicted > 150
    assert 5_000 < stats.held_bytes <= 21_000
    await store.close()
    again = await opened(tmp_path / "cache.db", max_bytes=200_000, scope_bytes=20_000)
    await again.put(key_number(999), recording_of("word " * 200))
    await again.flush()
    assert (await again.stats()).held_bytes <= 21_000
    await again.close()


async def test_what_was_purged_is_in_no_file_of_it(tmp_path: Path) -> None:
    store = await opened(tmp_path / "cache.db")
    await store.put(key_number(1), recording_of("an unforgettable xylophone"))
    await store.flush()

    def written() -> list[str]:
        return [path.name for path in tmp_path.iterdir() if b"xylophone" in path.read_bytes()]

    assert written()
    assert await store.purge(Which()) == 1
    assert not written()
    await store.close()
