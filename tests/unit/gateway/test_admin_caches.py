"""/admin/caches where a store cannot be told, and where there is no semantic cache."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext

import httpx

from cache.store.base import StoreFault, Which
from cache.store.memory import MemoryStore
from gateway.api import admin_caches
from gateway.api.admin_gate import AdminGate
from gateway.app import build_app
from gateway.settings import Admin
from gateway.tenants.keys import AdminKeys
from tests.support.embedders import quiet_log

KEY = "sk-admin"
KEYED = {"authorization": f"Bearer {KEY}"}


class DeafStore(MemoryStore):
    """Cannot be told of an erasure."""

    async def purge(self, which: Which) -> int:
        raise StoreFault("no line to it")


async def nothing_learnt(_: Which) -> int:
    return 0


def client_of(store: MemoryStore) -> httpx.AsyncClient:
    keys = AdminKeys(Admin(keys=(hashlib.sha256(KEY.encode()).hexdigest(),)))
    routes = admin_caches.router(
        store, None, nothing_learnt, AdminGate(keys, "127.0.0.1", quiet_log())
    )
    app = build_app({}, {}, [routes], nullcontext)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_an_erasure_that_may_not_have_reached_the_store_is_no_success() -> None:
    async with client_of(DeafStore(1 << 20)) as client:
        reply = await client.post("/admin/caches/erase", json={"tenant": "a"}, headers=KEYED)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_away")
    assert "may still be there" in reply.json()["error"]["message"]
    assert reply.headers["retry-after"] == "1"


async def test_without_a_semantic_cache_the_exact_one_is_shown_and_erased() -> None:
    async with client_of(MemoryStore(1 << 20)) as client:
        shown = await client.get("/admin/caches", headers=KEYED)
        erased = await client.post("/admin/caches/erase", json={"tag": "x"}, headers=KEYED)
        stranger = await client.get("/admin/caches")
    assert shown.json()["semantic"] is None
    assert erased.json() == {"exact": 0, "semantic": 0, "labels": 0}
    assert stranger.status_code == 401
