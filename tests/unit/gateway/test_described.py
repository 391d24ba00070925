"""/openapi.json says what the gateway does: keys, and errors as they are sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gateway.api.described import ERRORS
from gateway.settings import Admin, Tenant
from tests.support.serving import Running, serving, settings_for_tests

CHAT, FEEDBACK = "/v1/chat/completions", "/v1/feedback"
ASKED = {"model": "small", "messages": [{"role": "user", "content": "x"}]}
ADMIN = {"authorization": "Bearer adm"}
KEYED, ONCE = ({"authorization": f"Bearer {name}"} for name in ("keyed", "once"))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


SETTINGS = settings_for_tests(
    server=replace(settings_for_tests().server, max_body_bytes=2000),
    admin=Admin(keys=(_hash("adm"),)),
    tenants=(
        Tenant(name="keyed", keys=(_hash("keyed"),), models=("small",)),
        Tenant(name="once", keys=(_hash("once"),), rpm=1),
    ),
)


async def document_of(running: Running) -> dict[str, Any]:
    told: dict[str, Any] = (await running.client.get("/openapi.json")).json()
    return told


def operations(document: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield (method, path), operation


async def test_every_path_says_which_errors_it_answers_and_none_a_422() -> None:
    async with serving(SETTINGS) as running:
        document = await document_of(running)
    assert {name for name, _ in operations(document)} == set(ERRORS)
    assert "ValidationError" not in str(document)
    for name, operation in operations(document):
        errors = {int(status) for status in operation["responses"] if status >= "400"}
        assert errors == {*ERRORS[name], *({503} if name[1] == "/readyz" else ())}
        for status in ERRORS[name]:
            content = operation["responses"][str(status)]["content"]
            assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}


async def test_every_path_that_wants_a_key_says_which() -> None:
    async with serving(SETTINGS) as running:
        document = await document_of(running)
    schemes = document["components"]["securitySchemes"]
    for (_, path), operation in operations(document):
        named = [name for one in operation.get("security", []) for name in one]
        wanted = {"v1": ["TenantKey"], "admin": ["AdminKey"], "metrics": ["MetricsKey", "AdminKey"]}
        assert named == wanted.get(path.split("/")[1], []), path
        assert all(schemes[name]["scheme"] == "bearer" for name in named)


FAILING: list[tuple[str, str, int, dict[str, Any]]] = [
    ("post", CHAT, 400, {"json": {"model": "small"}, "headers": KEYED}),
    ("post", CHAT, 401, {"json": ASKED}),
    ("post", CHAT, 403, {"json": {**ASKED, "model": "large"}, "headers": KEYED}),
    ("post", CHAT, 404, {"json": {**ASKED, "model": "none"}, "headers": KEYED}),
    ("post", CHAT, 413, {"content": b"x" * 2001, "headers": KEYED}),
    ("post", CHAT, 429, {"json": ASKED, "headers": ONCE}),
    (
        "post",
        CHAT,
        504,
        {"json": ASKED, "headers": KEYED | {"cache-control": "only-if-cached"}},
    ),
    ("post", FEEDBACK, 400, {"json": {"id": "x"}, "headers": KEYED}),
    ("post", FEEDBACK, 404, {"json": {"id": "x", "score": 1}, "headers": KEYED}),
    ("get", "/v1/models", 401, {}),
    ("get", "/v1/models/{name}", 404, {"headers": KEYED}),
    ("get", "/metrics", 401, {}),
    ("get", "/admin/tenants", 401, {}),
    ("get", "/admin/tenants/{name}", 404, {"headers": ADMIN}),
    ("get", "/admin/decisions", 400, {"params": {"limit": 0}, "headers": ADMIN}),
    ("get", "/admin/decisions/{request_id}", 404, {"headers": ADMIN}),
    ("get", "/admin/cascade/{tenant}/curve", 404, {"headers": ADMIN}),
    ("get", "/admin/caches", 400, {"params": {"limit": "x"}, "headers": ADMIN}),
    ("post", "/admin/caches/erase", 400, {"json": {}, "headers": ADMIN}),
    ("post", "/admin/tenants/{tenant}/keys", 404, {"json": {}, "headers": ADMIN}),
    ("post", "/admin/keys/{key_id}/rotate", 400, {"json": {}, "headers": ADMIN}),
    ("delete", "/admin/keys/{key_id}", 400, {"headers": ADMIN}),
    ("get", "/admin/usage", 400, {"params": {"colour": "red"}, "headers": ADMIN}),
]


async def test_an_error_is_one_of_those_that_are_documented_and_in_their_shape() -> None:
    async with serving(SETTINGS) as running:
        document = await document_of(running)
        assert (await running.client.post(CHAT, json=ASKED, headers=ONCE)).status_code == 200
        for method, path, status, sent in FAILING:
            at = path.replace("{", "no-").replace("}", "")
            reply = await running.client.request(method, at, **sent)
            assert reply.status_code == status, (method, path, reply.text)
            assert str(status) in document["paths"][path][method]["responses"]
            shape = document["components"]["schemas"]["Error"]["properties"]["error"]
            error = reply.json()["error"]
            assert set(error) == set(shape["required"]) == set(shape["properties"])
            assert isinstance(error["message"], str)
            assert isinstance(error["type"], str)
