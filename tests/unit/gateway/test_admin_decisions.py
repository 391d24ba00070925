"""/admin/decisions and /admin/cascade, over HTTP, with two fake models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cascade.policy import write_policy
from gateway.parts.cascade import cache_error_of
from gateway.parts.policies import policy_path, weights_of
from gateway.settings import Cascade, SemanticCache, Tenant
from tests.support.fake import FakeModel
from tests.support.routing import CODE_ROUTE
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import eventually

WEIGHTS = weights_of("small" * 8, "large" * 8)
"""As tests/support/serving.py makes fingerprints."""


def ask(text: str, **more: object) -> dict[str, object]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """Tenant `default` is calibrated: code goes to the large model."""
    policy_path(tmp_path, "default").write_text(
        write_policy("default", WEIGHTS, CODE_ROUTE, {"curves": [], "target": 0.01})
    )
    settings = settings_for_tests(cascade=Cascade(folder=tmp_path))
    prices = {"small": (0.1, 0.1), "large": (1.0, 1.0)}
    async with serving(settings, prices=prices) as one:
        yield one


async def test_a_decision_is_found_by_the_id_of_its_answer(running: Running) -> None:
    answer = await running.client.post("/v1/chat/completions", json=ask("def f(): pass"))
    assert answer.headers["sluice-policy"].startswith("quality; max-loss=0.01; confidence=0.9")
    found = await running.client.get(f"/admin/decisions/{answer.json()['id']}")
    (line,) = found.json()["decisions"]
    assert line["origin"] == "large"
    (step,) = line["steps"]
    assert step["layer"] == "cascade"
    assert step["policy"].startswith("quality/default/")
    assert step["score"] > step["cut"]
    assert 0 < step["costs_usd"]["small"] < step["costs_usd"]["large"]
    assert "score" in step["reason"]
    assert "def f" not in found.text, "no prompt leaves here"


async def test_the_last_decisions_come_first_and_can_be_narrowed(running: Running) -> None:
    for text in ("one", "two", "three"):
        await running.client.post("/v1/chat/completions", json=ask(text))
    await running.client.post("/v1/chat/completions", json=ask("four", model="small"))
    every = (await running.client.get("/admin/decisions")).json()["decisions"]
    assert len(every) == 4
    assert every[0]["at"] >= every[-1]["at"]
    assert every[0]["steps"] == [], "a named model is no decision"
    narrow = await running.client.get("/admin/decisions?layer=cascade&limit=2")
    assert [line["origin"] for line in narrow.json()["decisions"]] == ["small", "small"]
    nobody = await running.client.get("/admin/decisions?tenant=nobody")
    assert nobody.json() == {"decisions": []}


async def test_what_one_layer_decided_is_found_by_its_name() -> None:
    gate = asyncio.Event()
    models = {"small": FakeModel(name="small"), "large": FakeModel(name="large", gate=gate)}
    body = ask("the same at one time", model="large", temperature=0)
    async with serving(models=models) as running:
        both = [
            asyncio.create_task(running.client.post("/v1/chat/completions", json=body))
            for _ in range(2)
        ]
        await eventually(lambda: running.system.drain.inflight == 2)
        await asyncio.sleep(0.1)  # whoever is in flight has asked the cache
        gate.set()
        await asyncio.gather(*both)
        await running.client.post("/v1/chat/completions", json=body)
        found = {}
        for layer in ("exact", "join", "cascade"):
            told = await running.client.get(f"/admin/decisions?layer={layer}")
            found[layer] = [line["origin"] for line in told.json()["decisions"]]
        unknown = await running.client.get("/admin/decisions?layer=foo")
    assert found == {"exact": ["exact"], "join": ["joined"], "cascade": []}
    assert unknown.status_code == 400
    assert "'join'" in unknown.json()["error"]["message"]


async def test_a_request_is_found_by_the_id_that_its_caller_gave_it(running: Running) -> None:
    mine = {"x-request-id": "my-req-1"}
    for text in ("one", "two"):
        await running.client.post("/v1/chat/completions", json=ask(text), headers=mine)
    await running.client.post("/v1/chat/completions", content=b"no JSON", headers=mine)
    found = (await running.client.get("/admin/decisions/my-req-1")).json()["decisions"]
    assert [line["status"] for line in found] == [400, 200, 200], "newest first, refusals too"
    assert {line["client_id"] for line in found} == {"my-req-1"}
    (own,) = (await running.client.get(f"/admin/decisions/{found[1]['id']}")).json()["decisions"]
    assert own == found[1]


async def test_a_caller_cannot_hide_a_request_behind_an_id_of_its_own(running: Running) -> None:
    answer = await running.client.post("/v1/chat/completions", json=ask("one"))
    ours = answer.headers["x-request-id"]
    await running.client.post(
        "/v1/chat/completions", json=ask("two"), headers={"x-request-id": ours}
    )
    (line,) = (await running.client.get(f"/admin/decisions/{ours}")).json()["decisions"]
    assert line["id"] == ours


async def test_an_unknown_request_is_a_404_that_says_what_is_kept(running: Running) -> None:
    reply = await running.client.get("/admin/decisions/nothing")
    assert reply.status_code == 404
    assert "oldest calls are forgotten" in reply.json()["error"]["message"]


async def test_a_tenants_policy_states_its_promise_and_the_composed_bound(
    running: Running,
) -> None:
    (told,) = (await running.client.get("/admin/cascade")).json()["tenants"]
    assert told["calibrated"]
    assert told["promise"] == {"max_loss": 0.01, "confidence": 0.9, "labels": 900}
    both = told["with_semantic_cache"]
    assert both is None or both == {"max_loss": 0.02, "confidence": 0.9}
    curve = await running.client.get("/admin/cascade/default/curve")
    assert curve.json() == {"curves": [], "target": 0.01}
    assert (await running.client.get("/admin/cascade/nobody/curve")).status_code == 404


def test_where_cache_and_cascade_both_promise_the_bounds_add_up() -> None:
    on = SemanticCache(enabled=True, max_error=0.02)
    strict = Tenant(name="s", semantic_max_error=0.005)
    settings = settings_for_tests(semantic=on, tenants=(Tenant(name="t"), strict))
    assert cache_error_of(settings, "t") == 0.02
    assert cache_error_of(settings, "s") == 0.005
    off = replace(settings, semantic=SemanticCache(enabled=False))
    assert cache_error_of(off, "t") == 0.0
    static = replace(settings, semantic=replace(on, policy="static"))
    assert cache_error_of(static, "t") == 0.0


async def test_uncalibrated_auto_says_so_and_decides_by_the_answer() -> None:
    unsure = FakeModel(name="small")
    async with serving(
        models={"small": unsure, "large": FakeModel(name="large")},
        prices={"small": (0.1, 0.1), "large": (1.0, 1.0)},
    ) as running:
        answer = await running.client.post("/v1/chat/completions", json=ask("Hello"))
        assert answer.headers["sluice-policy"] == "quality; uncalibrated"
        assert answer.headers["sluice-origin"] == "large"
        (line,) = (await running.client.get("/admin/decisions")).json()["decisions"]
        assert [step["choice"] for step in line["steps"]] == ["small", "large"]
        assert "escalated" in line["steps"][1]["reason"]
        assert line["wasted"][0]["model"] == "small"
        named = await running.client.post("/v1/chat/completions", json=ask("Hi", model="large"))
        assert "sluice-policy" not in named.headers
        (told,) = (await running.client.get("/admin/cascade")).json()["tenants"]
        assert told["promise"] is None
