"""The admin API over a real port: who is let in, and what policies say."""

from __future__ import annotations

import hashlib

import pytest

from gateway.settings import Admin, ExactCache, Tenant
from tests.support.serving import serving, settings_for_tests

KEY = "sk-admin"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
TENANTS = (Tenant(name="default"), Tenant(name="acme", keys=("0" * 64,), rpm=7))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "evil.example"}, 401),
        *(
            ({name: value}, 401)
            for name, value in {
                "x-forwarded-for": "10.0.0.1",
                "X-Forwarded-Host": "sluice.example",
                "x-forwarded-proto": "https",
                "Forwarded": "for=1.2.3.4",
                "X-Real-IP": "1.2.3.4",
                "Via": "1.1 proxy",
                "CF-Connecting-IP": "1.2.3.4",
                "True-Client-IP": "1.2.3.4",
            }.items()
        ),
        ({"origin": "https://evil.example"}, 401),
        ({"origin": "http://["}, 401),
    ],
)
async def test_without_admin_keys_only_callers_on_this_machine_are_let_in(
    headers: dict[str, str], status: int
) -> None:
    async with serving(settings_for_tests(tenants=TENANTS)) as running:
        reply = await running.client.get("/admin/tenants", headers=headers)
        assert reply.status_code == status
        if status == 200:
            assert reply.json() == {
                "tenants": ["default", "acme"],
                "problem": None,
                "waiting": [],
            }
        else:
            assert "[admin]" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("given", "status"), [(None, 401), ("sk-wrong", 401), (KEY, 200)])
async def test_with_admin_keys_one_is_needed_even_from_this_machine(
    given: str | None, status: int
) -> None:
    settings = settings_for_tests(tenants=TENANTS, admin=Admin(keys=(HASH,)))
    async with serving(settings) as running:
        headers = {"authorization": f"Bearer {given}"} if given else {}
        reply = await running.client.get("/admin/tenants", headers=headers)
        assert reply.status_code == status


async def test_a_policy_is_shown_with_what_it_inherits_and_without_hashes() -> None:
    settings = settings_for_tests(tenants=TENANTS, exact=ExactCache(store="memory://", ttl_s=9.0))
    async with serving(settings) as running:
        reply = await running.client.get("/admin/tenants/acme")
        lines = {line["name"]: line for line in reply.json()["policy"]}
        assert lines["rpm"]["value"] == 7
        assert lines["cache_ttl_s"]["value"] == 9.0
        assert lines["cache_ttl_s"]["source"] == "cache.exact.ttl_s (default)"
        assert "0" * 64 not in reply.text
        missing = await running.client.get("/admin/tenants/nobody")
        assert missing.status_code == 404
        assert "default, acme" in missing.json()["error"]["message"]


async def test_the_admin_paths_and_their_key_are_in_the_openapi_document() -> None:
    async with serving() as running:
        document = (await running.client.get("/openapi.json")).json()
        assert document["paths"]["/admin/tenants"]["get"]["security"] == [{"AdminKey": []}]
