"""Memory in front of a slower store."""

from __future__ import annotations

import asyncio

import pytest

from cache.replay import Recording
from cache.store.base import StoreFault, Which
from cache.store.memory import MemoryStore
from cache.store.tiered import TieredStore
from tests.support.recordings import FakeClock, key_number, recording_of


class Below(MemoryStore):
    """A store whose reads wait for `gate` after they have read."""

    def __init__(self) -> None:
        super().__init__(1 << 20, clock=FakeClock())
        self.gate = asyncio.Event()
        self.gate.set()
        self.reads = 0
        self.broken = False

    async def get(self, key: bytes) -> Recording | None:
        self.reads += 1
        if self.broken:
            raise StoreFault("down")
        recording = self.look_up(key)
        await self.gate.wait()
        return recording


def tiers() -> tuple[TieredStore, MemoryStore, Below]:
    memory, below = MemoryStore(1 << 20, clock=FakeClock()), Below()
    return TieredStore(memory, below), memory, below


async def test_what_is_in_memory_is_not_asked_for_below() -> None:
    store, _, below = tiers()
    await store.put(key_number(1), recording_of("a"))
    assert await store.get(key_number(1)) == recording_of("a")
    assert below.reads == 0
    below.broken = True
    assert await store.get(key_number(1)) == recording_of("a")


async def test_what_is_found_below_is_found_in_memory_afterwards() -> None:
    store, memory, below = tiers()
    await below.put(key_number(1), recording_of("a"))
    first = await store.get(key_number(1))
    assert first == recording_of("a")
    assert await store.get(key_number(1)) is first
    assert below.reads == 1
    assert memory.look_up(key_number(1)) is first


async def test_a_read_below_does_not_bring_back_what_is_purged_meanwhile() -> None:
    store, memory, below = tiers()
    await below.put(key_number(1), recording_of("a"))
    below.gate.clear()
    reading = asyncio.create_task(store.get(key_number(1)))
    await asyncio.sleep(0)
    await store.purge(Which())
    below.gate.set()
    assert await reading is None
    assert memory.look_up(key_number(1)) is None


async def test_what_is_put_during_a_read_below_is_newer() -> None:
    store, _, below = tiers()
    await below.put(key_number(1), recording_of("old"))
    below.gate.clear()
    reading = asyncio.create_task(store.get(key_number(1)))
    await asyncio.sleep(0)
    await store.put(key_number(1), recording_of("new"))
    below.gate.set()
    assert await reading == recording_of("new")
    assert await store.get(key_number(1)) == recording_of("new")


async def test_a_fault_below_is_passed_on() -> None:
    store, _, below = tiers()
    below.broken = True
    with pytest.raises(StoreFault):
        await store.get(key_number(1))
