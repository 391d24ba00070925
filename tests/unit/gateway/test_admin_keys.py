"""Keys through /admin, on a real port: what one gateway changes holds on both soon after.

How soon is what POLL_S says; a clock here would judge how busy the machine is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gateway.settings import Keys, Tenant
from gateway.tenants.key_sync import POLL_S
from tests.support.redis_server import RedisServer
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import eventually

ACME = Tenant(name="acme", stored_keys=True)
CHAT = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def two_gateways(store: str) -> AsyncIterator[tuple[Running, Running]]:
    settings = settings_for_tests(tenants=(ACME,), keys=Keys(store=store))
    async with serving(settings) as one, serving(settings) as two:
        yield one, two


async def ask(gateway: Running, key: str) -> httpx.Response:
    return await gateway.client.post(
        "/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"}
    )


async def create(gateway: Running, **asked: object) -> dict[str, str]:
    reply = await gateway.client.post("/admin/tenants/acme/keys", json=asked)
    assert reply.status_code == 201
    assert reply.headers["cache-control"] == "no-store"
    made: dict[str, str] = reply.json()
    return made


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/keys.db"
    server: RedisServer = request.getfixturevalue("redis7")
    server.client.flushall()
    return server.url


async def test_a_key_opens_everywhere_soon_and_so_does_its_revocation_close(store: str) -> None:
    assert POLL_S < 1.0

    async def opens(gateway: Running) -> bool:
        return (await ask(gateway, made["key"])).status_code == 200

    async def refuses(gateway: Running) -> bool:
        return not await opens(gateway)

    async with two_gateways(store) as (one, two):
        made = await create(one)
        assert await opens(one)
        await eventually(lambda: opens(two))
        revoked = await two.client.delete(f"/admin/keys/{made['id']}")
        assert revoked.json()["state"] == "revoked"
        assert (await ask(two, made["key"])).status_code == 401
        await eventually(lambda: refuses(one))
        reply = await ask(one, made["key"])
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "revoked_api_key")


async def test_rotation_gives_a_second_key_and_both_open_during_the_grace(store: str) -> None:
    async with two_gateways(store) as (one, _):
        made = await create(one, name="ci")
        path = f"/admin/keys/{made['id']}/rotate"
        new = (await one.client.post(path, json={"grace_s": 60})).json()
        assert new["replaces"] == made["id"]
        for key in (made["key"], new["key"]):
            assert (await ask(one, key)).status_code == 200
        await one.client.post(f"/admin/keys/{new['id']}/rotate", json={"grace_s": 0})
        assert (await ask(one, new["key"])).status_code == 401


async def test_changes_are_audited_and_no_secret_is_shown_or_logged() -> None:
    async with serving(settings_for_tests(tenants=(ACME,))) as running:
        made = await create(running, name="ci", lives_s=60)
        await ask(running, made["key"])
        listed = await running.client.get("/admin/keys", params={"tenant": "acme"})
        [shown] = listed.json()["keys"]
        assert (shown["name"], shown["state"]) == ("ci", "active")
        assert shown["expires_at"] == pytest.approx(shown["created_at"] + 60)
        await running.client.delete(f"/admin/keys/{made['id']}")
        await eventually(lambda: running.logged.getvalue().count(b'"audit"') == 2)
        logged = running.logged.getvalue().decode()
        audits = [json.loads(line) for line in logged.splitlines() if '"audit"' in line]
        assert [(line["did"], line["key"], line["who"]) for line in audits] == [
            ("keys.create", made["id"], "local"),
            ("keys.revoke", made["id"], "local"),
        ]
        secret = made["key"].split("-", 2)[2]
        assert secret not in logged + listed.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("POST", "/admin/tenants/nobody/keys", {}, 404, "there are: acme"),
        ("POST", "/admin/tenants/acme/keys", {"lives_s": -1}, 400, "lives_s"),
        ("POST", "/admin/tenants/acme/keys", {"lives_s": 1e-7}, 400, "lives_s"),
        ("POST", "/admin/tenants/acme/keys", {"name": "x\x1b[31mred\n"}, 400, "printable"),
        ("POST", "/admin/tenants/acme/keys", {"nme": "x"}, 400, "nme"),
        ("DELETE", "/admin/keys/nobody", None, 400, "sluice keys list"),
    ],
)
async def test_a_bad_request_is_refused_in_openais_shape(
    method: str, path: str, body: object, status: int, word: str
) -> None:
    async with serving(settings_for_tests(tenants=(ACME,))) as running:
        reply = await running.client.request(method, path, json=body)
        assert reply.status_code == status
        assert word in reply.json()["error"]["message"]


async def test_a_key_needs_no_body_and_one_that_is_not_json_is_named_as_the_body() -> None:
    async with serving(settings_for_tests(tenants=(ACME,))) as running:
        assert (await running.client.post("/admin/tenants/acme/keys")).status_code == 201
        reply = await running.client.post(
            "/admin/tenants/acme/keys",
            content=b"{name",
            headers={"content-type": "application/json"},
        )
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "body"


async def misses_its_keys(running: Running) -> bool:
    return "keys" in (await running.client.get("/readyz")).json().get("problems", {})


async def well(running: Running) -> bool:
    return (await running.client.get("/readyz")).json()["status"] == "ready"


async def test_when_the_store_goes_away_known_keys_open_and_it_is_told(
    redis7: RedisServer,
) -> None:
    redis7.client.flushall()
    settings = settings_for_tests(tenants=(ACME,), keys=Keys(store=redis7.url))
    async with serving(settings) as running:
        made = await create(running)
        redis7.stop()
        try:
            await eventually(lambda: misses_its_keys(running))
            assert (await ask(running, made["key"])).status_code == 200
            refused = await running.client.post("/admin/tenants/acme/keys", json={})
            assert refused.status_code == 503
        finally:
            redis7.resume()
        await eventually(lambda: well(running))
