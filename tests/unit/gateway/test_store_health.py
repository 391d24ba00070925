"""Whose fault it is that the store was not read, as /readyz, /metrics and the log tell it."""

from __future__ import annotations

from io import BytesIO

from cache.store.base import StoreFault, StoreLate
from cache.store.memory import MemoryStore
from gateway.observe.logs import LineWriter, build_log
from gateway.settings import ExactCache
from gateway.store_health import RECENT_S, StoreHealth
from tests.support.recordings import FakeClock
from tests.support.redis_server import RedisServer
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import eventually
from tests.support.stalls import stalled

CHAT = "/v1/chat/completions"
PATIENCE_S = 0.1
"""Four times the usual: a busy machine keeps Redis waiting, too."""


async def ask(running: Running, text: str) -> str:
    body = {"model": "small", "messages": [{"role": "user", "content": text}]}
    reply = await running.client.post(CHAT, json=body)
    assert reply.status_code == 200
    return reply.headers["cache-status"]


async def is_ready(running: Running) -> bool:
    return (await running.client.get("/readyz")).json()["status"] == "ready"


async def test_a_busy_gateway_does_not_take_its_store_for_broken(redis7: RedisServer) -> None:
    settings = settings_for_tests(exact=ExactCache(store=redis7.url, patience_s=PATIENCE_S))
    async with serving(settings) as running:
        async with stalled(PATIENCE_S / 2):
            for number in range(100):
                if "no time for the store" in await ask(running, f"question {number}"):
                    break
            during = (await running.client.get("/readyz")).json()
        await eventually(lambda: is_ready(running))
        metrics = (await running.client.get("/metrics")).text
    assert during["status"] == "ready"
    counts = {
        whose: line.rpartition(" ")[2]
        for line in metrics.splitlines()
        for whose in ("late", "store")
        if line.startswith(f'sluice_store_faults_total{{whose="{whose}"}}')
    }
    assert float(counts["late"]) >= 1
    assert float(counts["store"]) == 0
    assert b"gateway late" in running.logged.getvalue()
    assert b"store fault" not in running.logged.getvalue()


async def test_being_late_is_told_once_in_a_while_and_a_fault_each_time() -> None:
    logged, clock = BytesIO(), FakeClock()
    writer = LineWriter(logged)
    log = build_log(writer, "info", as_json=True)
    health = StoreHealth(MemoryStore(1000), log, clock)
    for _ in range(3):
        health.tell("get", StoreLate("late"))
    clock.now += RECENT_S
    health.tell("get", StoreLate("late"))
    assert await health.problem() is None
    for _ in range(2):
        health.tell("get", StoreFault("broken"))
    assert await health.problem() is not None
    writer.close()
    told = [logged.getvalue().count(text) for text in (b"gateway late", b"store fault")]
    assert told == [2, 2]
    assert health.counts == {"store": 2, "late": 4}
