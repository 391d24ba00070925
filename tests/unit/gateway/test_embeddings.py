"""/v1/embeddings over HTTP: OpenAI's shape, what is refused, and who may ask how much at a time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI

from cache.embed import BUNDLED, Encoder, ModelUnusable
from gateway.api.embeddings import MOST_TEXTS, MOST_WAITING
from gateway.parts.embedding import Embedding
from gateway.settings import Server, Settings, Tenant
from tests.support.embedders import embedding_of, quiet_log
from tests.support.encoders import BagEncoder, bag_vector
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import eventually

PATH = "/v1/embeddings"


@asynccontextmanager
async def gateway(
    encoder: BagEncoder | None = None, settings: Settings | None = None
) -> AsyncIterator[Running]:
    embedding = embedding_of(encoder or BagEncoder())
    async with serving(settings, embedding=embedding) as running:
        yield running


async def ask(running: Running, given: Any, **more: Any) -> httpx.Response:
    body = {"model": BUNDLED, "input": given, **more}
    return await running.client.post(PATH, json=body)


async def test_the_openai_client_gets_vectors() -> None:
    """Its default asks for base64 and decodes it."""
    async with (
        gateway() as running,
        AsyncOpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="any") as client,
    ):
        told = await client.embeddings.create(model=BUNDLED, input=["one two", "three"])
    assert [one.index for one in told.data] == [0, 1]
    assert np.allclose(told.data[0].embedding, bag_vector("one two"), atol=1e-6)
    assert (told.usage.prompt_tokens, told.usage.total_tokens) == (3, 3)
    assert told.model == BUNDLED


async def test_one_text_as_numbers_or_base64_is_the_same_vector() -> None:
    async with gateway() as running:
        plain = (await ask(running, "hello there")).json()["data"][0]["embedding"]
        packed = (await ask(running, "hello there", encoding_format="base64")).json()
    bytes_of = base64.b64decode(packed["data"][0]["embedding"])
    assert np.allclose(np.frombuffer(bytes_of, "<f4"), plain)
    assert len(plain) == 64


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input": [1, 2]}, 400, "input"),
        ({"input": [[1, 2]]}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [""]}, 400, "input"),
        ({"input": ["a"] * (MOST_TEXTS + 1)}, 400, "input"),
        ({"input": "word " * 101}, 400, "input"),
        ({"input": {}}, 400, "input"),
        ({"dimensions": 7}, 400, "dimensions"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
        ({"model": "text-embedding-3-small"}, 404, "model"),
        ({"colour": "red"}, 400, None),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_name(
    change: dict[str, Any], status: int, param: str | None
) -> None:
    async with gateway() as running:
        reply = await ask(running, **{"given": "hello", **_renamed(change)})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param)
    assert error["message"].endswith(".")


def _renamed(change: dict[str, Any]) -> dict[str, Any]:
    return {("given" if name == "input" else name): value for name, value in change.items()}


async def test_keys_limits_and_bounds_hold_here_too() -> None:
    keyed = Tenant(name="t", keys=(hashlib.sha256(b"sk-t").hexdigest(),), rpm=1)
    server = Server(port=0, max_body_bytes=200)
    async with gateway(settings=settings_for_tests(tenants=(keyed,), server=server)) as running:
        assert (await ask(running, "hello")).status_code == 401
        running.client.headers["authorization"] = "Bearer sk-t"
        assert (await ask(running, "hello")).status_code == 200
        second = await ask(running, "hello")
        assert (second.status_code, second.json()["error"]["type"]) == (429, "rate_limit_error")
    async with gateway(settings=settings_for_tests(server=server)) as running:
        assert (await ask(running, "long " * 60)).status_code == 413


async def test_tokens_count_to_the_tenants_rate_as_they_were() -> None:
    """They are guessed from characters (here too low), and what failed at its end counts, too."""
    keyed = Tenant(name="t", keys=(hashlib.sha256(b"sk-t").hexdigest(),), tpm=300)
    short, too_long = "a a a a a a", "a " * 200
    batches = [[short] * 40, [*[short] * 40, too_long]]
    codes = []
    for batch in ([short] * 200, *batches):
        async with gateway(settings=settings_for_tests(tenants=(keyed,))) as running:
            running.client.headers["authorization"] = "Bearer sk-t"
            for texts in (batch, [short] * 40):
                reply = await ask(running, texts)
                codes.append((reply.status_code, reply.json().get("error", {}).get("code")))
    assert codes == [
        (400, "request_too_large"), (200, None),
        (200, None), (429, "rate_limit_exceeded"),
        (400, "invalid_value"), (429, "rate_limit_exceeded"),
    ]  # fmt: skip


async def test_a_large_batch_leaves_the_embedder_to_others() -> None:
    """All of its texts but two wait outside of the queue that the semantic cache stands in."""
    gate = threading.Event()
    encoder = BagEncoder(gate=gate)
    async with gateway(encoder) as running:
        tasks = [
            asyncio.create_task(ask(running, [f"text {number} {n}" for n in range(40)]))
            for number in range(4)
        ]
        embedding = running.system.meaning.embedding
        assert embedding is not None
        await eventually(lambda: bool(encoder.encoded))
        await asyncio.sleep(0.05)
        assert embedding.embedder.waiting <= 2
        gate.set()
        assert {reply.status_code for reply in await asyncio.gather(*tasks)} == {200}


async def test_when_too_many_wait_the_next_is_told_to_come_again() -> None:
    gate = threading.Event()
    encoder = BagEncoder(gate=gate)
    async with gateway(encoder) as running:
        tasks = [asyncio.create_task(ask(running, f"{n}")) for n in range(MOST_WAITING + 8)]
        await eventually(lambda: sum(task.done() for task in tasks) >= 8)
        gate.set()
        replies = await asyncio.gather(*tasks)
    busy = [reply for reply in replies if reply.status_code == 503]
    assert len(busy) == 8
    assert busy[0].headers["retry-after"] == "1"


async def test_an_embedder_that_cannot_be_loaded_says_why() -> None:
    def make(_: threading.Event) -> Encoder:
        raise ModelUnusable("no such folder")

    embedding = Embedding(BUNDLED, make, quiet_log())
    async with serving(embedding=embedding) as running:
        reply = await ask(running, "hello")
    assert reply.status_code == 503
    assert "no such folder" in reply.json()["error"]["message"]
