"""The archive's file: what a crash, a broken file and a full queue may cost, and what never."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

import msgspec
import pytest

from cache import archive_file
from cache.archive import KEPT_TAIL, LIFE_S, Erasure, Kept, Lesson
from cache.archive_sqlite import SqliteArchive
from cache.store.base import StoreFault
from cache.store.sqlite_open import integrity
from tests.support.archived import kept, keys_of, lesson, loaded, namespace, summary
from tests.support.recordings import FakeClock
from tests.support.speakers import eventually

ROOM = 1 << 24


async def opened(path: Path, clock: FakeClock | None = None, **options: object) -> SqliteArchive:
    archive = SqliteArchive(path, ROOM, clock=clock or FakeClock(), **options)  # type: ignore[arg-type]
    await archive.open()
    return archive


async def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    """The child is killed without a word while it goes on writing."""
    path = tmp_path / "semantic.db"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, str(path)), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert (await child.stdout.readline()) == b"flushed\n"
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()
    assert integrity(path) == "ok"
    archive = await opened(path)
    told = await loaded(archive)
    await archive.close()
    assert {one.number for one in told if isinstance(one, Lesson)} >= set(range(50))
    assert kept(1) in told


async def test_a_broken_file_is_moved_aside_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "semantic.db"
    path.write_bytes(b"no database at all, but long enough to look at" * 100)
    events: list[str] = []
    archive = await opened(path, on_event=events.append)
    await archive.keep(kept(1))
    await archive.flush()
    assert await keys_of(archive) == [1]
    await archive.close()
    assert len(events) == 1
    assert "moved to" in events[0]
    assert any(tmp_path.glob("semantic.db.aside-*"))  # noqa: ASYNC240


async def test_a_file_of_another_version_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "semantic.db"
    archive = await opened(path)
    await archive.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {archive_file.SCHEMA_VERSION + 1}")
    connection.close()
    events: list[str] = []
    again = await opened(path, on_event=events.append)
    await again.close()
    assert "its schema is" in events[0]


async def test_a_folder_that_cannot_be_written_is_a_fault_with_a_remedy(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    archive = SqliteArchive(blocked / "semantic.db", ROOM)
    with pytest.raises(StoreFault, match="may be written to"):
        await archive.open()


async def test_before_it_is_open_it_takes_nothing(tmp_path: Path) -> None:
    archive = SqliteArchive(tmp_path / "semantic.db", ROOM)
    with pytest.raises(StoreFault):
        await archive.keep(kept(1))
    with pytest.raises(StoreFault):
        await archive.erase(Erasure())


async def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    archive = await opened(tmp_path / "semantic.db", queue_bytes=1000)
    for key in range(50):
        await archive.keep(kept(key))
    await archive.flush()
    left = await keys_of(archive)
    assert archive.dropped == 50 - len(left) > 0
    await archive.keep(kept(99))
    await archive.flush()
    assert 99 in await keys_of(archive)
    await archive.close()


async def test_a_batch_that_fails_is_told_and_the_next_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    archive = await opened(tmp_path / "semantic.db", on_event=events.append)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(archive_file.ArchiveFile, "_keep", fail)
        await archive.keep(kept(1))
        await archive.flush()
    await archive.keep(kept(2))
    await archive.flush()
    assert await keys_of(archive) == [2]
    assert (archive.dropped, len(events)) == (1, 1)
    assert "disk I/O error" in events[0]
    await archive.close()


async def test_an_erasure_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = await opened(tmp_path / "semantic.db")
    await archive.keep(kept(1))

    def fail(*_: object) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(archive_file.ArchiveFile, "erase", fail)
        with pytest.raises(StoreFault, match="Nothing was erased"):
            await archive.erase(Erasure())
    assert await archive.erase(Erasure()) == 1
    await archive.close()


async def test_what_expires_is_swept_while_it_runs(tmp_path: Path) -> None:
    clock = FakeClock()
    archive = await opened(tmp_path / "semantic.db", clock, sweep_every_s=0.02)
    await archive.keep(kept(1, expires_at=1010.0))
    await archive.keep(kept(2))
    await archive.flush()
    clock.now = 1020.0

    async def swept() -> bool:
        return await keys_of(archive) == [2]

    await eventually(swept)
    await archive.close()


async def test_what_nobody_would_use_goes_at_a_start(tmp_path: Path) -> None:
    """Lessons beyond the last that a policy uses, and what was learnt a month ago."""
    path, clock = tmp_path / "semantic.db", FakeClock()
    archive = await opened(path, clock)
    for number in range(KEPT_TAIL + 10):
        await archive.teach(lesson(number))
    await archive.sum_up(summary(space=2, at=clock.now - LIFE_S - 1))
    await archive.teach(lesson(1, space=3, at=clock.now - LIFE_S - 1))
    await archive.close()
    again = await opened(path, clock)
    told = await loaded(again)
    await again.close()
    assert [one.number for one in told if isinstance(one, Lesson)] == list(
        range(10, KEPT_TAIL + 10)
    )
    assert len(told) == KEPT_TAIL


async def test_of_a_scope_the_namespaces_that_learnt_last_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "semantic.db"
    archive = SqliteArchive(path, ROOM, 2, clock=FakeClock())
    await archive.open()
    for number in range(5):
        await archive.sum_up(summary(space=number, at=1000.0 + number, other=1))
        await archive.teach(lesson(1, space=number, at=1000.0 + number))
    await archive.close()
    again = SqliteArchive(path, ROOM, 2, clock=FakeClock())
    await again.open()
    told = await loaded(again)
    await again.close()
    assert {one.namespace for one in told} == {namespace(3), namespace(4)}
    assert len(told) == 4


def bytes_on_disk(folder: Path) -> int:
    return sum(part.stat().st_size for part in folder.glob("semantic.db*"))


async def test_made_up_users_fill_their_tenants_room_and_the_whole_is_bounded(
    tmp_path: Path,
) -> None:
    """Also in rows beside the questions, of tags and of what was learnt."""
    path, words = tmp_path / "semantic.db", "word " * 200
    archive = SqliteArchive(path, 400_000, 500, 1_000_000, clock=FakeClock(), sweep_every_s=0.2)
    await archive.open()
    for key in range(20):
        await archive.keep(kept(key, scope="tenant:quiet", owner="quiet"))
    for key in range(2000):
        tenant = f"loud{key % 4}"
        owner, tags = f"{tenant}/evil{key}", tuple(f"{tag}".rjust(128, "x") for tag in range(5))
        scope = f"user:{owner}"
        await archive.keep(kept(key, scope=scope, owner=owner, words=words, tags=tags))
        learnt = lesson(key, space=key)
        await archive.teach(msgspec.structs.replace(learnt, scope=scope, asked=b"x" * 2000))
        if key % 100 == 0:
            await archive.flush()
    await archive.close()
    again = SqliteArchive(path, 400_000, 500, 1_000_000, clock=FakeClock())
    await again.open()
    assert await keys_of(again, "tenant:quiet") == list(range(20))
    loud = [one for one in await loaded(again) if isinstance(one, Kept) and one.owner[:4] == "loud"]
    await again.close()
    assert len(loud) > 20
    assert {one.owner.partition("/")[0] for one in loud} == {f"loud{n}" for n in range(4)}
    # Pages are not full, and those freed stay in the file: it is as large as it was at its largest.
    assert bytes_on_disk(tmp_path) < 4_000_000


async def test_in_a_tenants_room_the_user_who_holds_most_loses(tmp_path: Path) -> None:
    archive = SqliteArchive(tmp_path / "semantic.db", 60_000, clock=FakeClock())
    await archive.open()
    await archive.keep(kept(1, owner="shop/good"))
    for key in range(2, 300):
        await archive.keep(kept(key, owner="shop/evil", words="word " * 50))
    await archive.flush()
    left = await keys_of(archive)
    await archive.close()
    assert left[0] == 1
    assert 20 < len(left) < 100
    assert left[1:] == list(range(301 - len(left), 300))


async def test_what_was_learnt_takes_half_of_the_whole_the_largest_room_losing(
    tmp_path: Path,
) -> None:
    archive = SqliteArchive(tmp_path / "semantic.db", ROOM, 500, 20_000, clock=FakeClock())
    await archive.open()
    for number in range(10):
        await archive.sum_up(
            msgspec.structs.replace(summary(space=number, at=900.0 + number), blob=b"x" * 2000)
        )
    quiet = msgspec.structs.replace(summary(space=99, at=1.0), scope="tenant:quiet")
    await archive.sum_up(quiet)
    await archive.close()
    again = SqliteArchive(tmp_path / "semantic.db", ROOM, 500, 20_000, clock=FakeClock())
    await again.open()
    spaces = {one.namespace for one in await loaded(again)}
    await again.close()
    assert spaces == {namespace(number) for number in (6, 7, 8, 9, 99)}


async def test_a_busy_archive_is_swept_too(tmp_path: Path) -> None:
    clock = FakeClock()
    archive = await opened(tmp_path / "semantic.db", clock, sweep_every_s=0.05)
    await archive.keep(kept(1, expires_at=1010.0))
    await archive.flush()
    clock.now = 1020.0
    for number in range(1000):
        await archive.teach(lesson(number))
        await asyncio.sleep(0.005)
        if number % 20 == 0 and await keys_of(archive) == []:
            break
    assert await keys_of(archive) == []
    await archive.close()


async def test_what_was_erased_is_in_no_file_of_it(tmp_path: Path) -> None:
    archive = await opened(tmp_path / "semantic.db")
    secret = kept(1)
    await archive.keep(secret)
    await archive.flush()
    assert written(tmp_path, secret.question.encode())
    assert await archive.erase(Erasure()) == 1
    assert not written(tmp_path, secret.question.encode())
    await archive.close()


def written(folder: Path, text: bytes) -> list[str]:
    """The files that hold it."""
    return [path.name for path in folder.iterdir() if text in path.read_bytes()]


async def _write_without_end(path: Path) -> None:
    archive = await opened(path)
    await archive.keep(kept(1))
    for number in range(50):
        await archive.teach(lesson(number))
    await archive.flush()
    sys.stdout.write("flushed\n")
    sys.stdout.flush()
    for number in range(50, 1_000_000):
        await archive.teach(lesson(number))
        await asyncio.sleep(0.001)


if __name__ == "__main__":
    asyncio.run(_write_without_end(Path(sys.argv[1])))
