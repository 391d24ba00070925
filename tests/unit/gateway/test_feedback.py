"""/v1/feedback over HTTP: who is taught by it, and who may not give it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from cascade.labels import read_labels
from gateway.parts.policies import collected_path
from gateway.settings import Cascade, SemanticCache, Tenant
from tests.support.embedders import embedding_of
from tests.support.encoders import BagEncoder
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import eventually

PATH = "/v1/feedback"
ONE, TWO = "sk-one", "sk-two"
TENANTS = tuple(
    Tenant(name=key[3:], keys=(hashlib.sha256(key.encode()).hexdigest(),)) for key in (ONE, TWO)
)


async def ask(
    running: Running, text: str, model: str = "small", key: str = ONE, **more: str
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    headers = {"authorization": f"Bearer {key}"}
    return await running.client.post("/v1/chat/completions", json=body, headers=headers)


async def tell(running: Running, body: dict[str, Any], key: str = ONE) -> httpx.Response:
    return await running.client.post(PATH, json=body, headers={"authorization": f"Bearer {key}"})


async def test_a_complaint_about_a_semantic_hit_takes_the_answer_away() -> None:
    """A stranger's complaint does not, and looks like one about nothing."""
    semantic = SemanticCache(enabled=True, policy="static", threshold=0.5, store="memory://")
    settings = settings_for_tests(semantic=semantic, tenants=TENANTS)
    embedding = embedding_of(BagEncoder())
    async with serving(settings, embedding=embedding) as running:
        layer = running.system.meaning.semantic
        assert layer is not None
        await layer.restored()
        await ask(running, "how big is the moon")
        await layer.answerer.settle()
        said = []
        for text in ("well how big is the moon", "how big is this moon", "so how big is the moon"):
            hit = await ask(running, text)
            assert hit.headers["sluice-origin"] == "semantic"
            stranger = await tell(running, {"id": hit.json()["id"], "score": 0}, TWO)
            nothing = await tell(running, {"id": "chatcmpl-x", "score": 0}, TWO)
            assert (stranger.status_code, nothing.status_code) == (404, 404)
            assert stranger.json()["error"]["code"] == nothing.json()["error"]["code"]
            said.append(await tell(running, {"id": hit.json()["id"], "score": 0}))
            if sum(state.entries for state in layer.answerer.state()) == 0:
                break
        assert {reply.status_code for reply in said} == {200}
        assert said[0].json()["taught"] == ["semantic"]
        assert (await ask(running, "how big is our moon")).headers["sluice-origin"] == "small"


async def test_feedback_is_given_by_a_correct_answer_alone_and_counts_once() -> None:
    semantic = SemanticCache(enabled=True, policy="static", threshold=0.5, store="memory://")
    settings = settings_for_tests(semantic=semantic, tenants=TENANTS)
    async with serving(settings, embedding=embedding_of(BagEncoder())) as running:
        layer = running.system.meaning.semantic
        assert layer is not None
        await layer.restored()
        await ask(running, "how big is the moon")
        await layer.answerer.settle()
        hit = await ask(running, "well how big is the moon")
        assert "detail" not in hit.headers["cache-status"], "a threshold knows no probability"
        about = {"id": hit.json()["id"], "correct_answer": "as wide as Australia, and no wider"}
        once, again = [(await tell(running, about)).json() for _ in range(2)]
        assert (once["taught"], once["unchanged"]) == (["semantic"], [])
        assert (again["taught"], again["unchanged"]) == ([], ["semantic"])
        assert layer.state()[0].labels_by_source == {"feedback": 1}


@pytest.mark.parametrize(
    ("cache_scope", "heard"), [("user", False), ("tenant", True), ("group:all", True)]
)
async def test_where_users_are_kept_apart_none_speaks_of_anothers_answer(
    cache_scope: str, heard: bool, tmp_path: Path
) -> None:
    """Neither to the semantic cache nor to the cascade; it looks like an answer that never was."""
    tenants = tuple(replace(tenant, cache_scope=cache_scope) for tenant in TENANTS)
    settings = settings_for_tests(
        semantic=SemanticCache(enabled=True, policy="static", threshold=0.5, store="memory://"),
        cascade=Cascade(folder=tmp_path, shadow_share=1e-9),
        tenants=tenants,
    )
    async with serving(settings, embedding=embedding_of(BagEncoder())) as running:
        layer = running.system.meaning.semantic
        assert layer is not None
        await layer.restored()
        await ask(running, "how big is the moon", user="ann")
        await layer.answerer.settle()
        hit = await ask(running, "well how big is the moon", user="ann")
        assert hit.headers["sluice-origin"] == "semantic"
        auto = await ask(running, "where is the moon tonight", "auto", user="ann")
        for answer in (hit, auto):
            about = {"id": answer.json()["id"], "score": 0}
            strangers = [await tell(running, {**about, "user": "bob"})]
            if not heard:
                strangers += [await tell(running, about), await tell(running, about, TWO)]
                about = {**about, "user": "ann"}
                nothing = await tell(running, {**about, "id": "chatcmpl-x"})
                unknown = nothing.text.replace("chatcmpl-x", answer.json()["id"])
                assert {reply.text for reply in strangers} == {unknown}
                strangers = [await tell(running, about)]
            assert {reply.status_code for reply in strangers} == {200}


async def test_who_keeps_users_apart_and_names_none_speaks_of_answers_to_nobody_named(
    tmp_path: Path,
) -> None:
    settings = settings_for_tests(
        cascade=Cascade(folder=tmp_path, shadow_share=1e-9),
        tenants=(replace(TENANTS[0], cache_scope="user"),),
    )
    async with serving(settings) as running:
        answer = await ask(running, "What is it?", "auto")
        about = {"id": answer.json()["id"], "score": 0}
        assert (await tell(running, {**about, "user": "bob"})).status_code == 404
        assert (await tell(running, about)).status_code == 200


async def test_a_right_answer_to_auto_becomes_a_label_of_its_tenant(tmp_path: Path) -> None:
    settings = settings_for_tests(cascade=Cascade(folder=tmp_path, shadow_share=1e-9))
    async with serving(settings) as running:
        answer = await ask(running, "What is it?", "auto")
        told = await tell(running, {"id": answer.json()["id"], "correct_answer": "Paris"})
        assert told.json()["taught"] == ["cascade"]
        path = collected_path(tmp_path, "default")
        await eventually(lambda: path.exists() and path.read_text().endswith("\n"))
        (row,) = read_labels(path.read_text().splitlines())
    assert row.volunteered
    assert (row.small, row.large) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"id": "x", "score": 2}, "score"),
        ({"id": "x", "score": "good"}, "score"),
        ({"id": "", "score": 1}, "id"),
        ({"score": 1}, "id"),
        ({"id": "x"}, "score"),
        ({"id": "x", "correct_answer": ""}, "score"),
        ({"id": "x", "score": None, "user": "ann"}, "score"),
        ({"id": "x", "score": 1, "user": 5}, "user"),
        ({"id": "x", "score": 1, "stars": 5}, None),
    ],
)
async def test_what_is_no_feedback_is_refused_by_name(
    body: dict[str, Any], param: str | None
) -> None:
    async with serving() as running:
        reply = await running.client.post(PATH, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_feedback_needs_a_key() -> None:
    async with serving(settings_for_tests(tenants=TENANTS)) as running:
        reply = await running.client.post(PATH, json={"id": "x", "score": 1})
    assert reply.status_code == 401
