"""Gateways with one Redis, each a whole server on its own port, in this process.

Their models are fakes that put the scope they were asked under into what they say, so that an
answer served across tenants would show.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import httpx

from engine.contract import Call
from gateway.parts.embedding import Embedding
from gateway.settings import ExactCache, Limits, SemanticCache, Tenant
from tests.support.fake import FakeModel
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.shared import PATIENT_S

CHAT = "/v1/chat/completions"
ALICE, BOB = "sk-alice", "sk-bob"


def say(call: Call) -> list[str]:
    return [f"{call.scope} ", "asked: ", *call.messages[-1].text.split(" ")]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@asynccontextmanager
async def gateways(
    url: str,
    count: int = 2,
    pause_s: float = 0.0,
    *,
    gate: asyncio.Event | None = None,
    limits_s: float = PATIENT_S,
    exact: ExactCache | None = None,
    semantic: SemanticCache | None = None,
    embeddings: Sequence[Embedding] = (),
    **alices: Any,
) -> AsyncIterator[list[Running]]:
    """With the Redis at `url`, waited for as long as a busy machine may need; who tests Redis's
    faults passes an `exact` of its own. Models say nothing before `gate` is open. `limits_s`:
    patience with the limits' Redis. `embeddings`, one for each; `alices`: of alice's policy."""
    settings = settings_for_tests(
        exact=exact or ExactCache(store=url, patience_s=PATIENT_S),
        limits=Limits(store=url, patience_s=limits_s),
        semantic=semantic or SemanticCache(enabled=False, store="memory://"),
        tenants=(
            Tenant(name="alice", keys=(_hash(ALICE),), **alices),
            Tenant(name="bob", keys=(_hash(BOB),)),
        ),
    )
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                serving(
                    settings,
                    {
                        name: FakeModel(say, name=name, pause_s=pause_s, gate=gate)
                        for name in settings.models
                    },
                    embedding=embeddings[number] if embeddings else None,
                )
            )
            for number in range(count)
        ]


async def ready(pair: list[Running]) -> None:
    """The semantic caches are awake."""
    for running in pair:
        layer = running.system.meaning.semantic
        assert layer is not None
        await layer.restored()


async def ask(gateway: Running, text: str, key: str = ALICE, **headers: str) -> httpx.Response:
    given = {"authorization": f"Bearer {key}", **headers}
    return await gateway.client.post(CHAT, json=_body(text), headers=given)


def begun(gateway: Running, text: str) -> AbstractAsyncContextManager[httpx.Response]:
    """Alice's stream, whose answer has begun: what it says may still have to come."""
    given = {"authorization": f"Bearer {ALICE}"}
    body = _body(text) | {"stream": True}
    return gateway.client.stream("POST", CHAT, json=body, headers=given)


def _body(text: str) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}]}


def text_of(reply: httpx.Response) -> str:
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def computed(gateway: Running) -> int:
    small = gateway.models["small"]
    assert isinstance(small, FakeModel)
    return len(small.calls)
