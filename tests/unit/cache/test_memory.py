"""The memory store keeps what is worth its bytes, and counts them honestly."""

from __future__ import annotations

import gc
import random
import tracemalloc

import pytest

from cache.store.base import Which
from cache.store.memory import MemoryStore
from tests.support.recordings import FakeClock, key_number, recording_of


def store_of(max_bytes: int, **options: int) -> MemoryStore:
    return MemoryStore(max_bytes, clock=FakeClock(), **options)


async def test_a_scan_does_not_drive_out_what_is_used() -> None:
    store = store_of(30_000)
    for number in range(5):
        await store.put(key_number(number), recording_of("hot"))
        for _ in range(3):
            await store.get(key_number(number))
    for number in range(100, 130):
        await store.put(key_number(number), recording_of("scan"))
    assert [await store.get(key_number(n)) is not None for n in range(5)] == [True] * 5


async def test_what_was_popular_once_leaves_in_the_end() -> None:
    store = store_of(20_000)
    await store.put(key_number(0), recording_of("old"))
    for _ in range(100_000):
        store.look_up(key_number(0))
    gone_after = None
    for number in range(1, 5_000):
        await store.put(key_number(number), recording_of("new"))
        store.look_up(key_number(number))
        if key_number(0) not in store._entries:
            gone_after = number
            break
    assert gone_after is not None


async def test_a_kept_fragment_counts_and_may_drive_others_out() -> None:
    store = store_of(6_000)
    recordings = [recording_of("a"), recording_of("b"), recording_of("c")]
    for number, recording in enumerate(recordings):
        await store.put(key_number(number), recording)
    before = (await store.stats()).held_bytes
    recordings[2].memo["json"] = b"x" * 500
    assert (await store.stats()).held_bytes == before + 500
    recordings[2].memo["sse"] = b"x" * 3_500
    stats = await store.stats()
    assert stats.held_bytes <= 6_000
    assert stats.evicted >= 1


async def test_a_fragment_of_an_entry_that_left_is_not_counted() -> None:
    store = store_of(50_000)
    old, new = recording_of("a"), recording_of("b")
    await store.put(key_number(1), old)
    await store.put(key_number(1), new)
    before = (await store.stats()).held_bytes
    old.memo["sse"] = b"x" * 1_000
    assert (await store.stats()).held_bytes == before
    await store.purge(Which())
    new.memo["sse"] = b"x" * 1_000
    assert (await store.stats()).held_bytes == 0


async def test_the_sum_of_the_entries_is_what_is_held() -> None:
    rng = random.Random(5)
    clock = FakeClock()
    store = MemoryStore(60_000, clock=clock)
    for _ in range(4_000):
        key = key_number(rng.randrange(80))
        action = rng.randrange(10)
        if action < 4:
            words = ["w"] * rng.randrange(1, 60)
            await store.put(key, recording_of(*words, stored_at=clock.now, ttl_s=50))
        elif action < 8:
            recording = store.look_up(key)
            if recording is not None and action == 7:
                recording.memo["sse"] = b"x" * rng.randrange(2_000)
        elif action == 8:
            await store.purge(Which(key=key))
        clock.now += rng.random()
        stats = await store.stats()
        assert stats.held_bytes == sum(e.recording.held_bytes for e in store._entries.values())
        assert stats.held_bytes <= 60_000
        assert len(store._heap) <= 2 * len(store._entries) + 65
    assert stats.evicted > 100
    assert stats.expired > 10


@pytest.mark.parametrize("words", [3, 200])
async def test_bytes_held_are_about_the_bytes_taken(words: int) -> None:
    """Held bytes may say more than is taken, by a fifth at most, and hardly less."""
    count = 1_000
    store = store_of(1 << 30)
    gc.collect()
    tracemalloc.start()
    for number in range(count):
        recording = recording_of(*["word "] * words, tags=("some tag",))
        await store.put(number.to_bytes(32, "big"), recording)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    held = (await store.stats()).held_bytes

    assert 0.97 * taken <= held <= 1.25 * taken


async def test_a_scope_that_floods_the_store_pushes_out_its_own() -> None:
    store = store_of(200_000)
    kept = [key_number(number, "tenant:quiet") for number in range(20)]
    for key in kept:
        await store.put(key, recording_of("kept", scope="tenant:quiet"))
    for number in range(2_000):  # each of them dearer than what the others have
        dear = recording_of("x", scope="tenant:loud", prompt_tokens=50_000)
        await store.put(key_number(number, "tenant:loud"), dear)
    assert [store.look_up(key) for key in kept].count(None) == 0
    assert (await store.stats()).held_bytes <= 200_000


async def test_a_scope_alone_has_all_the_room_and_gives_it_to_those_who_come() -> None:
    store = store_of(200_000)
    for number in range(500):
        await store.put(key_number(number), recording_of("x"))
    assert (await store.stats()).held_bytes > 190_000
    late = [key_number(number, "tenant:late") for number in range(50)]
    for key in late:
        await store.put(key, recording_of("x", scope="tenant:late", prompt_tokens=500))
    assert [store.look_up(key) for key in late].count(None) == 0
