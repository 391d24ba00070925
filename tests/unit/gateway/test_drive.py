from __future__ import annotations

import asyncio

import pytest

from gateway.api.drive import drive


async def test_work_that_never_waits_is_never_announced() -> None:
    waits = []

    async def work() -> int:
        return 7

    assert await drive(work(), lambda: waits.append(1)) == 7
    assert waits == []


async def test_each_wait_is_announced_before_it_begins() -> None:
    order: list[str] = []

    async def announce() -> None:
        order.append("before")
        await asyncio.sleep(0)
        order.append("announced")

    async def work() -> str:
        order.append("a")
        await asyncio.sleep(0.001)
        order.append("b")
        await asyncio.sleep(0)
        return "done"

    assert await drive(work(), announce) == "done"
    assert order == ["a", "before", "announced", "b", "before", "announced"]


async def test_a_cancellation_reaches_the_work_wherever_it_is() -> None:
    for slow_part in ("work", "announcement"):
        ended: list[str] = []

        async def announce(slow: str = slow_part) -> None:
            await asyncio.sleep(60 if slow == "announcement" else 0)

        async def work(ended: list[str] = ended) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("closed")

        task = asyncio.create_task(_run(work(), announce))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["closed"]


async def test_work_may_survive_a_cancellation() -> None:
    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
        return "went on"

    task = asyncio.create_task(_run(work(), lambda: None))
    await asyncio.sleep(0.01)
    task.cancel()
    assert await task == "went on"


async def test_an_error_passes_through() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        await drive(work(), lambda: None)


async def _run(work, before):  # type: ignore[no-untyped-def]
    return await drive(work, before)
