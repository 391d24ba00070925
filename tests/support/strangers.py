"""Tenants of every isolation scope: who shares answers with whom, and who must not notice whom."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.settings import Tenant
from tests.support.serving import Running

DURATION = re.compile(r"dur=[\d.]+")
SCOPES = {
    "ann": "tenant", "ben": "tenant", "left": "group:pair", "right": "group:pair",
    "other": "group:other", "users": "user", "pub": "public", "pub2": "public",
}  # fmt: skip


@dataclass(frozen=True)
class Who:
    tenant: str
    user: str = ""


STRANGERS = [
    (Who("ann"), Who("ben")),
    (Who("ann"), Who("left")),
    (Who("left"), Who("ann")),
    (Who("left"), Who("other")),
    (Who("pub"), Who("ann")),
    (Who("ann"), Who("pub")),
    (Who("users", "u1"), Who("users", "u2")),
    (Who("users", "u1"), Who("users")),
    (Who("users"), Who("users")),
    (Who("users", "ann"), Who("ann", "ann")),
    (Who("ann"), Who("users", "ann")),
]
FRIENDS = [
    (Who("ann"), Who("ann")),
    (Who("left"), Who("right")),
    (Who("pub"), Who("pub2")),
    (Who("users", "u1"), Who("users", "u1")),
]


def tenants() -> tuple[Tenant, ...]:
    return tuple(
        Tenant(name=name, keys=(hashlib.sha256(name.encode()).hexdigest(),), cache_scope=scope)
        for name, scope in SCOPES.items()
    )


async def ask(running: Running, who: Who, text: str = "hello", **more: Any) -> httpx.Response:
    body = {"model": "small", "messages": [{"role": "user", "content": text}], **more}
    if who.user:
        body["user"] = who.user
    headers = {"authorization": f"Bearer {who.tenant}"}
    return await running.client.post("/v1/chat/completions", json=body, headers=headers)


def told(reply: httpx.Response) -> tuple[Any, ...]:
    """All that a reply tells, but for ids and clocks. Of Server-Timing: which stages there were."""
    headers = {
        name: DURATION.sub("dur=", value)
        for name, value in reply.headers.items()
        if name not in {"date", "x-request-id"}
    }
    body = re.sub(r'"(id|created)":"?[\w-]+"?', "", DURATION.sub("dur=", reply.text))
    return reply.status_code, headers, body
