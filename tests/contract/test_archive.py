"""What every archive of the semantic cache promises (cache/archive.py), held against each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from cache.archive import Archive, Dropped, Erasure, Lesson, MemoryArchive, Summary
from cache.archive_redis import RedisArchive
from cache.archive_sqlite import SqliteArchive
from cache.store.redis_line import RedisLine
from tests.support.archived import kept, keys_of, lesson, loaded, namespace, summary
from tests.support.recordings import FakeClock
from tests.support.redis_server import VERSIONS, RedisServer
from tests.support.shared import PATIENT_S

Maker = Callable[[int, FakeClock, Path], Archive]
ROOM = 1 << 20


def make_memory(_: int, __: FakeClock, ___: Path) -> Archive:
    return MemoryArchive()


def make_sqlite(scope_bytes: int, clock: FakeClock, folder: Path) -> Archive:
    return SqliteArchive(folder / "semantic.db", scope_bytes, clock=clock)


def make_redis(server: RedisServer, scope_bytes: int, clock: FakeClock, _: Path) -> Archive:
    """Patience enough for a machine that is busy with other things."""
    return RedisArchive(
        RedisLine(server.url, patience_s=PATIENT_S), scope_bytes, clock=clock, trust_s=30.0
    )


MAKERS: dict[str, Maker] = {"memory": make_memory, "sqlite": make_sqlite}
CASES = [*MAKERS, *(f"redis{version}" for version in VERSIONS)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=CASES)
def maker(request: pytest.FixtureRequest) -> Maker:
    if request.param in MAKERS:
        return MAKERS[request.param]
    server = request.getfixturevalue(request.param)
    server.client.flushall()
    return partial(make_redis, server)


@pytest.fixture
async def archive(maker: Maker, clock: FakeClock, tmp_path: Path) -> AsyncIterator[Archive]:
    opened = maker(ROOM, clock, tmp_path)
    await opened.open()
    yield opened
    await opened.close()


async def test_what_is_told_is_loaded_questions_first(archive: Archive) -> None:
    told = [kept(1, tags=("a", "b")), kept(2, space=2), summary(me=1), lesson(2), lesson(3)]
    await archive.teach(lesson(1))
    await archive.keep(told[0])  # type: ignore[arg-type]
    await archive.sum_up(told[2])  # type: ignore[arg-type]
    await archive.teach(told[3])  # type: ignore[arg-type]
    await archive.keep(told[1])  # type: ignore[arg-type]
    await archive.teach(told[4])  # type: ignore[arg-type]
    await archive.flush()
    assert await loaded(archive) == told


async def test_questions_are_loaded_oldest_first_in_each_namespace(archive: Archive) -> None:
    for key in range(1, 1203):
        await archive.keep(kept(key, space=key % 2))
    await archive.flush()
    keys = await keys_of(archive)
    assert sorted(keys) == list(range(1, 1203))
    for odd in (0, 1):
        of_one = [key for key in keys if key % 2 == odd]
        assert of_one == sorted(of_one)


async def test_a_question_kept_again_takes_the_place_of_the_old_one(archive: Archive) -> None:
    await archive.keep(kept(1, tags=("a",)))
    await archive.keep(kept(1, words="only by post"))
    await archive.flush()
    assert await loaded(archive) == [kept(1, words="only by post")]
    assert await archive.erase(Erasure(tag="a")) == 0


async def test_what_is_dropped_is_not_loaded(archive: Archive) -> None:
    for key in (1, 2, 3):
        await archive.keep(kept(key))
    await archive.keep(kept(1, space=2))
    await archive.drop(Dropped(namespace(1), (1, 3, 99)))
    await archive.flush()
    assert await loaded(archive) == [kept(2), kept(1, space=2)] or await loaded(archive) == [
        kept(1, space=2),
        kept(2),
    ]


async def test_a_summary_takes_the_place_of_the_lessons_in_it(archive: Archive) -> None:
    for number in range(4):
        await archive.teach(lesson(number))
        await archive.teach(lesson(number, teller="other"))
    await archive.sum_up(summary(me=2, other=1))
    await archive.flush()
    told = await loaded(archive)
    assert told[0] == summary(me=2, other=1)
    left = [(one.teller, one.number) for one in told if isinstance(one, Lesson)]
    assert sorted(left) == [("me", 3), ("other", 2), ("other", 3)]


async def test_a_summary_leaves_other_namespaces_their_lessons(archive: Archive) -> None:
    await archive.teach(lesson(1, space=2))
    await archive.sum_up(summary(me=9))
    await archive.flush()
    assert await loaded(archive) == [summary(me=9), lesson(1, space=2)]


async def test_the_last_summary_counts(archive: Archive) -> None:
    await archive.sum_up(summary(me=1))
    await archive.sum_up(summary(me=2, at=1001.0))
    await archive.flush()
    assert await loaded(archive) == [summary(me=2, at=1001.0)]


@pytest.mark.parametrize(
    ("erasure", "gone"),
    [
        (Erasure(), {1, 2, 3, 4, 5}),
        (Erasure(scope="tenant:a"), {1, 2, 3}),
        (Erasure(model="small"), {1, 2, 3, 4, 5}),
        (Erasure(model="large-7b"), {2}),
        (Erasure(tag="odd"), {1, 3, 5}),
        (Erasure(owner="ann"), {1, 4}),
        (Erasure(scope="tenant:a", owner="ann"), {1}),
        (Erasure(answer="answer-tenant:a-3"), {3}),
        (Erasure(scope="tenant:b", answer="answer-tenant:a-3"), set()),
        (Erasure(tag="unheard of"), set()),
    ],
)
async def test_an_erasure_takes_what_matches_all_of_it(
    archive: Archive, erasure: Erasure, gone: set[int]
) -> None:
    await archive.keep(kept(1, scope="tenant:a", tags=("odd",), owner="ann"))
    await archive.keep(kept(2, scope="tenant:a", answered_by="large-7b"))
    await archive.keep(kept(3, scope="tenant:a", tags=("x", "odd")))
    await archive.keep(kept(4, scope="tenant:b", owner="ann"))
    await archive.keep(kept(5, scope="tenant:b", tags=("odd",)))
    assert await archive.erase(erasure) == len(gone)
    assert set(await keys_of(archive)) == {1, 2, 3, 4, 5} - gone


async def test_an_answer_goes_with_any_of_its_questions(archive: Archive) -> None:
    await archive.keep(kept(1, owner="ann", group=7))
    await archive.keep(kept(2, owner="bob", group=7))
    await archive.keep(kept(3, owner="bob"))
    await archive.keep(kept(4, owner="cyd", group=7, space=2))
    assert await archive.erase(Erasure(owner="ann")) == 2
    assert sorted(await keys_of(archive)) == [3, 4]


async def test_an_erasure_reaches_what_is_still_on_its_way(archive: Archive) -> None:
    for key in range(200):
        await archive.keep(kept(key))
    assert await archive.erase(Erasure()) == 200
    await archive.flush()
    assert await keys_of(archive) == []


async def test_what_was_learnt_is_no_text_of_anybody_and_stays(archive: Archive) -> None:
    await archive.keep(kept(1))
    await archive.sum_up(summary(me=1))
    await archive.erase(Erasure())
    assert await loaded(archive) == [summary(me=1)]


async def test_it_is_in_touch_and_closes_twice(archive: Archive) -> None:
    assert archive.in_touch
    await archive.close()
    await archive.close()


async def test_one_scope_fills_its_own_room_and_nobody_elses(
    maker: Maker, clock: FakeClock, tmp_path: Path
) -> None:
    archive = maker(40_000, clock, tmp_path)
    if isinstance(archive, MemoryArchive):
        pytest.skip("the memory of a process is bounded by cache/quota.py")
    await archive.open()
    await archive.keep(kept(1, scope="tenant:quiet"))
    for key in range(300):
        await archive.keep(kept(key, scope="tenant:loud", space=key, words="word " * 50))
    await archive.flush()
    loud = await keys_of(archive, "tenant:loud")
    assert await keys_of(archive, "tenant:quiet") == [1]
    assert 20 < len(loud) < 100
    assert loud == list(range(300 - len(loud), 300))
    await archive.close()


async def test_what_has_expired_is_not_loaded_after_a_restart(
    maker: Maker, clock: FakeClock, tmp_path: Path
) -> None:
    archive = maker(ROOM, clock, tmp_path)
    if isinstance(archive, MemoryArchive):
        pytest.skip("does not outlive the process")
    await archive.open()
    await archive.keep(kept(1, expires_at=clock.now + 10))
    await archive.keep(kept(2, expires_at=clock.now + 1000))
    await archive.sum_up(summary(me=1))
    await archive.close()
    clock.now += 100
    again = maker(ROOM, clock, tmp_path)
    await again.open()
    assert await keys_of(again) == [2]
    assert [one for one in await loaded(again) if isinstance(one, Summary)] == [summary(me=1)]
    await again.close()
