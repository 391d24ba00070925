"""What gateways with one Redis tell each other, and what Redis' faults may cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cache.archive import Dropped, Erasure, Kept, Lesson, Lost, News, Summary
from cache.archive_redis import RedisArchive
from cache.archive_redis_index import ROW_BYTES, Family
from cache.store.base import StoreFault
from cache.store.redis_client import CLUSTER
from cache.store.redis_line import RedisLine
from tests.support.archived import kept, keys_of, lesson, loaded, namespace, summary
from tests.support.recordings import FakeClock
from tests.support.redis_server import RedisServer, running_redis
from tests.support.shared import PATIENT_S
from tests.support.speakers import PATIENCE_S, eventually

pytestmark = pytest.mark.slow

ROOM = 1 << 20
NAMES = "sluice:1:s:*"


@pytest.fixture
def server(redis7: RedisServer) -> RedisServer:
    redis7.client.flushall()
    return redis7


class Gateway:
    """An archive, and what it has told."""

    def __init__(
        self,
        url: str,
        room: int = ROOM,
        most: int = 500,
        trust_s: float = 0.8,
        patience_s: float = PATIENT_S,
    ) -> None:
        line = RedisLine(url, patience_s=patience_s)
        self.archive = RedisArchive(line, room, most, clock=FakeClock(), trust_s=trust_s)
        self.heard: list[News] = []
        self.archive.follow(self._hear)

    async def _hear(self, news: News) -> None:
        self.heard.append(news)

    def forget_start(self) -> None:
        assert self.heard == [Lost()]
        self.heard.clear()


@asynccontextmanager
async def gateways(url: str, count: int, **options: float) -> AsyncIterator[list[Gateway]]:
    made = [Gateway(url, **options) for _ in range(count)]  # type: ignore[arg-type]
    for one in made:
        await one.archive.open()
        one.forget_start()
    try:
        yield made
    finally:
        for one in made:
            await one.archive.close()


@pytest.fixture
async def pair(server: RedisServer) -> AsyncIterator[list[Gateway]]:
    async with gateways(server.url, 2) as made:
        yield made


async def test_what_one_does_the_other_hears_in_order_and_itself_does_not(
    pair: list[Gateway],
) -> None:
    one, two = pair
    await one.archive.keep(kept(1, tags=("a",)))
    await one.archive.teach(lesson(1))
    await one.archive.drop(Dropped(namespace(1), (7,)))
    await one.archive.flush()
    await one.archive.erase(Erasure(tag="b"))
    told = [kept(1, tags=("a",)), lesson(1), Dropped(namespace(1), (7,)), Erasure(tag="b")]
    await eventually(lambda: two.heard == told)
    assert one.heard == []


async def test_no_text_lies_in_the_stream(pair: list[Gateway], server: RedisServer) -> None:
    one, _ = pair
    await one.archive.keep(kept(1, words="a secret"))
    await one.archive.erase(Erasure())
    everything = [server.client.dump(name) for name in server.client.keys("*")]
    assert everything
    assert not any(b"secret" in dump or b"question" in dump for dump in everything)


async def test_an_erasure_finds_what_another_was_still_writing(pair: list[Gateway]) -> None:
    """It was told of no erasure when it wrote, and hears of it afterwards."""
    one, two = pair
    await one.archive._writing.acquire()
    await one.archive.keep(kept(1, owner="ann"))
    await one.archive.keep(kept(2, owner="bob"))
    assert await two.archive.erase(Erasure(owner="ann")) == 0
    one.archive._writing.release()
    await eventually(lambda: Dropped(namespace(1), (1,)) in two.heard)
    assert await keys_of(two.archive) == [2]


async def test_what_lies_under_a_wrong_name_is_not_loaded(
    pair: list[Gateway], server: RedisServer
) -> None:
    """Not even where another scope's question was put there whole."""
    one, _ = pair
    await one.archive.keep(kept(1, scope="tenant:a"))
    await one.archive.keep(kept(1, scope="tenant:b"))
    await one.archive.keep(kept(2, scope="tenant:b"))
    await one.archive.flush()
    names = sorted(server.client.keys("sluice:1:s:*:e:*"))
    values = [server.client.get(name) for name in names]
    for name, value in zip(names, values[1:] + values[:1], strict=True):
        server.client.set(name, value)
    assert await loaded(one.archive) == []


async def test_rubbish_of_any_type_is_passed_over_and_written_over(
    pair: list[Gateway], server: RedisServer
) -> None:
    one, _ = pair
    await one.archive.keep(kept(1))
    await one.archive.sum_up(summary(me=1))
    await one.archive.teach(lesson(2))
    await one.archive.flush()
    for name in server.client.keys(NAMES):
        server.client.pipeline(transaction=True).delete(name).rpush(name, "rubbish").execute()
    assert await loaded(one.archive) == []
    assert await one.archive.erase(Erasure()) == 0
    await one.archive.keep(kept(2))
    await one.archive.flush()
    assert await keys_of(one.archive) == [2]


async def test_a_flush_is_noticed_by_everyone(pair: list[Gateway], server: RedisServer) -> None:
    server.client.flushall()
    await eventually(lambda: all(one.heard == [Lost()] for one in pair))
    await pair[0].archive.keep(kept(1))
    await pair[0].archive.flush()
    await eventually(lambda: kept(1) in pair[1].heard)


async def test_a_stopped_redis_ends_its_trust_and_holds_up_nobody(server: RedisServer) -> None:
    async with gateways(server.url, 1, patience_s=0.5) as (one,):
        server.stop()
        try:
            async with asyncio.timeout(PATIENCE_S):
                for number in range(100):
                    await one.archive.keep(kept(number))
                await eventually(lambda: not one.archive.in_touch)
                await one.archive.flush()
                with pytest.raises(StoreFault):
                    await one.archive.erase(Erasure())
        finally:
            server.resume()
        await eventually(lambda: one.archive.in_touch)
        assert one.archive.dropped > 0
        assert one.heard == []


async def test_a_restart_without_its_data_is_loaded_as_empty(tmp_path: Path) -> None:
    with running_redis(7, tmp_path) as server:
        async with gateways(server.url, 1) as (one,):
            await one.archive.keep(kept(1))
            await one.archive.flush()
            server.kill()
            await eventually(lambda: not one.archive.in_touch)
            loading = asyncio.create_task(loaded(one.archive))
            server.start()
            assert await loading == []
            await eventually(lambda: one.heard == [Lost()])


async def test_who_starts_without_redis_hears_of_it_when_it_comes(tmp_path: Path) -> None:
    with running_redis(7, tmp_path) as server:
        server.kill()
        one = Gateway(server.url)
        await one.archive.open()
        assert not one.archive.in_touch
        server.start()
        await eventually(lambda: one.archive.in_touch)
        assert one.heard == [Lost()]
        await one.archive.close()


async def test_a_full_redis_keeps_nothing_more_and_lets_erase(tmp_path: Path) -> None:
    with running_redis(7, tmp_path) as server:
        async with gateways(server.url, 2) as (one, two):
            await one.archive.keep(kept(1))
            await one.archive.flush()
            server.fill()
            await one.archive.keep(kept(2))
            await one.archive.flush()
            assert one.archive.dropped > 0
            assert await keys_of(one.archive) == [1]
            assert await one.archive.erase(Erasure()) == 1
            await eventually(lambda: Lost() in two.heard)
            server.make_room()
            await one.archive.keep(kept(3))
            await one.archive.flush()
            assert await keys_of(two.archive) == [3]


async def test_who_learns_in_many_namespaces_forgets_the_oldest(server: RedisServer) -> None:
    async with gateways(server.url, 1, most=3) as (one,):
        for number in range(10):
            await one.archive.teach(lesson(1, space=number, at=1000.0 + number))
            await one.archive.sum_up(summary(space=number, at=1000.0 + number, other=1))
        await one.archive.flush()
        told = await loaded(one.archive)
        assert [type(each) for each in told] == [Summary] * 3 + [Lesson] * 3
        assert {each.namespace for each in told} == {namespace(number) for number in (7, 8, 9)}
        assert len(server.client.keys(NAMES)) == 7


async def test_what_a_question_occupies_is_counted(server: RedisServer) -> None:
    async with gateways(server.url, 1) as (one,):
        before = int(server.client.info("memory")["used_memory_dataset"])
        for number in range(2000):
            await one.archive.keep(kept(number, tags=("a",)))
        await one.archive.flush()
        used = int(server.client.info("memory")["used_memory_dataset"]) - before
        index = Family.of(namespace(1)).index
        counted = int(server.client.hget(index, "bytes") or 0)
        # The stream of news is not a scope's, and bounded by itself.
        used -= int(server.client.memory_usage("sluice:1:{news}:stream") or 0)
        assert counted > 2000 * ROW_BYTES
        assert 0.7 * used < counted < 1.6 * used


async def test_expired_questions_leave_the_index_in_time(server: RedisServer) -> None:
    async with gateways(server.url, 1) as (one,):
        for number in range(4):
            await one.archive.keep(kept(number << 20, expires_at=1000.05))
        await one.archive.flush()
        await asyncio.sleep(0.1)
        for number in range(4, 6):
            await one.archive.keep(kept(number << 20))
        await one.archive.flush()
        assert int(server.client.zcard(Family.of(namespace(1)).order)) == 2


async def test_a_redis_cluster_keeps_erases_and_tells(tmp_path: Path) -> None:
    """One node with all slots: it refuses what spans several, as a cluster of many would."""
    with running_redis(7, tmp_path, "--cluster-enabled", "yes") as server:
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await eventually(lambda: b"cluster_state:ok" in _cluster_info(server))
        url = server.url.replace("redis:", f"redis{CLUSTER}:").removesuffix("/0")
        async with gateways(url, 2) as (one, two):
            for number in range(20):
                await one.archive.keep(kept(number, scope=f"tenant:{number}", owner="ann"))
            await one.archive.teach(lesson(1))
            await one.archive.sum_up(summary(other=1))
            await one.archive.flush()
            await eventually(lambda: len(two.heard) == 21)
            assert sum(isinstance(told, Kept) for told in await loaded(two.archive)) == 20
            assert len(await loaded(two.archive)) == 22
            assert await two.archive.erase(Erasure(scope="tenant:3")) == 1
            assert await two.archive.erase(Erasure(owner="ann")) == 19
            await eventually(lambda: Erasure(owner="ann") in one.heard)


def _cluster_info(server: RedisServer) -> bytes:
    info = server.client.execute_command("CLUSTER INFO")
    return info if isinstance(info, bytes) else str(info).encode().replace(b"': '", b":")
