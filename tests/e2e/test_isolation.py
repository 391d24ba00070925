"""Tenants through the prefix tree, on the real engine: nothing tells a stranger what is in it.

Time is counted in tokens. What a prompt takes is what is computed for it, and that is read from the
engine's own counters: it says the same on a busy machine, where a clock would decide by luck.
"""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.program import Program, Reply, wait_until
from tests.support.served import ALICE, BOB, LEFT, RIGHT, SHARED, chat

PROMPTS = 24
STRANGERS = [(ALICE, "", BOB, ""), (LEFT, "", ALICE, ""), (ALICE, "", LEFT, ""),
             (SHARED, "ann", SHARED, "ben")]  # fmt: skip


def long_prompt(question: str) -> str:
    return question + " Be patient and kind, and think of others." * 6


def ask(server: Program, key: str, user: str, text: str, **more: Any) -> Reply:
    body = chat(text, max_tokens=1, **({"user": user} if user else {}), **more)
    return server.post(body, authorization=f"Bearer {key}")


def cached(reply: Reply) -> int:
    details: dict[str, int] = reply.json["usage"]["prompt_tokens_details"]
    return details["cached_tokens"]


def engine_tokens(server: Program, kind: str) -> int:
    """What the engine has counted for the small model so far."""
    text = server.get("/metrics").body.decode()
    pattern = rf'sluice_engine_tokens_total{{kind="{kind}",model="small"}} ([\d.e+]+)'
    found = re.search(pattern, text)
    assert found, text
    return int(float(found[1]))


@pytest.mark.parametrize(("key", "user", "others_key", "others_user"), STRANGERS)
def test_what_a_prompt_costs_does_not_tell_whether_a_stranger_has_asked_it(
    server, question, key, user, others_key, others_user
) -> None:
    """Half of the prompts, drawn by lot, were asked by a stranger: the costs of both halves are
    the same, prompt by prompt, in what the caller reads and in what the engine has computed."""
    prompts = [long_prompt(question()) for _ in range(PROMPTS)]
    lot = random.Random(7)
    for prompt in lot.sample(prompts, PROMPTS // 2):
        ask(server, key, user, prompt)
    reused = engine_tokens(server, "reused")
    replies = [ask(server, others_key, others_user, prompt) for prompt in prompts]
    assert {cached(reply) for reply in replies} == {0}
    assert {reply.headers["cache-status"] for reply in replies} == {"exact; fwd=miss"}
    beside = [reply.computed - reply.json["usage"]["prompt_tokens"] for reply in replies]
    assert len(set(beside)) == 1
    server.wait_idle()
    assert engine_tokens(server, "reused") == reused


def test_what_a_prompt_costs_does_tell_those_who_share_a_scope(server, question) -> None:
    """Else the test above would hold for a tree that reuses nothing."""
    prompts = [long_prompt(question()) for _ in range(4)]
    for prompt in prompts:
        ask(server, LEFT, "", prompt)
    before = engine_tokens(server, "reused")
    for prompt in prompts:
        # Another seed: another call for the exact cache, the same tokens for the tree.
        assert cached(ask(server, RIGHT, "", prompt, seed=5)) >= 32
    server.wait_idle()
    assert engine_tokens(server, "reused") >= before + 4 * 32


def test_strangers_who_ask_at_the_same_time_do_not_share_a_computation(
    server, models, question
) -> None:
    """The scheduler lets a prompt wait for the same beginning that is being computed; never
    another scope's."""
    asked = models.long(long_prompt(question()), 300)
    before = engine_tokens(server, "reused")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.post, asked, authorization=f"Bearer {ALICE}")
        wait_until(server.running, "the first is being computed")
        second = pool.submit(server.post, asked, authorization=f"Bearer {BOB}")
        replies = [first.result(), second.result()]
    assert [cached(reply) for reply in replies] == [0, 0]
    assert len({reply.computed for reply in replies}) == 1
    assert all("collapsed" not in reply.headers["cache-status"] for reply in replies)
    server.wait_idle()
    assert engine_tokens(server, "reused") == before
