"""A gateway that answers by meaning, with the real embedder unless another is given, and tenants
who ask it. The threshold is fixed, so that a single repetition in other words hits."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from cache.embed import Encoder
from cache.entry import SpaceState
from gateway.settings import SemanticCache, Tenant
from tests.support.embedders import embedding_of
from tests.support.serving import Running, serving, settings_for_tests

CHAT = "/v1/chat/completions"
ASKED = "How do I reset my password?"
AGAIN = "How can I reset my password?"
ALICE, BOB, USERS, ONE, TWO, NONE = "sk-alice", "sk-bob", "sk-users", "sk-one", "sk-two", "sk-none"


def sha(key: str) -> tuple[str]:
    return (hashlib.sha256(key.encode()).hexdigest(),)


TENANTS = (
    Tenant(name="alice", keys=sha(ALICE)),
    Tenant(name="bob", keys=sha(BOB)),
    Tenant(name="users", keys=sha(USERS), cache_scope="user"),
    Tenant(name="one", keys=sha(ONE), cache_scope="group:club"),
    Tenant(name="two", keys=sha(TWO), cache_scope="group:club"),
    Tenant(name="none", keys=sha(NONE), semantic_max_error=0.0),
)


@asynccontextmanager
async def gateway(encoder: Encoder | None = None, **semantic: Any) -> AsyncIterator[Running]:
    """One whose embedder is ready."""
    static = {"enabled": True, "store": "memory://", "policy": "static", "threshold": 0.8}
    settings = settings_for_tests(semantic=SemanticCache(**{**static, **semantic}), tenants=TENANTS)
    embedding = embedding_of(encoder)
    async with serving(settings, embedding=embedding) as running:
        await embedding.ready()
        await restored(running)
        yield running


async def ask(
    running: Running,
    text: str,
    key: str = ALICE,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> httpx.Response:
    """Ask, and wait until what was answered is learnt."""
    body = {"model": "small", "messages": [{"role": "user", "content": text}], **more}
    reply = await running.client.post(
        CHAT, json=body, headers={"authorization": f"Bearer {key}", **(headers or {})}
    )
    await settled(running)
    return reply


async def restored(running: Running) -> None:
    meaning = running.system.meaning
    assert meaning is not None
    assert meaning.semantic is not None
    await meaning.semantic.restored()


async def settled(running: Running) -> None:
    meaning = running.system.meaning
    assert meaning.semantic is not None
    await meaning.semantic.answerer.settle()


def origin(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return reply.headers["sluice-origin"]


def states(running: Running) -> list[SpaceState]:
    semantic = running.system.meaning.semantic
    assert semantic is not None
    return semantic.state()


async def erase(running: Running, **what: Any) -> dict[str, int]:
    reply = await running.client.post("/admin/caches/erase", json=what)
    assert reply.status_code == 200, reply.text
    erased: dict[str, int] = reply.json()
    return erased
