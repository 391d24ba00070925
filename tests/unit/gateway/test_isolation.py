"""Tenants through the caches: what one asks is as if nobody had, to who shares nothing with it.

Not "no hit" alone: the whole reply that a tenant gets after another has asked is compared with the
one that it gets where nobody has. And the other way round, those who share do see each other, or
the comparison would hold for a gateway that caches nothing.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import scope_of
from gateway.settings import Tenant
from tests.support.fake import FakeModel
from tests.support.serving import serving, settings_for_tests
from tests.support.strangers import FRIENDS, STRANGERS, Who, ask, tenants, told


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("one", "two"), STRANGERS)
async def test_a_strangers_question_changes_nothing_in_the_answer(
    one: Who, two: Who, stream: bool
) -> None:
    settings = settings_for_tests(tenants=tenants())
    async with serving(settings) as running:
        alone = told(await ask(running, two, stream=stream))
    async with serving(settings) as running:
        for _ in range(2):
            await ask(running, one, stream=stream)
        assert told(await ask(running, two, stream=stream)) == alone


@pytest.mark.parametrize(("one", "two"), FRIENDS)
async def test_who_shares_a_scope_shares_answers(one: Who, two: Who) -> None:
    async with serving(settings_for_tests(tenants=tenants())) as running:
        await ask(running, one)
        reply = await ask(running, two)
        assert reply.headers["sluice-origin"] == "exact"
        assert reply.headers["cache-status"].startswith("exact; hit")


@pytest.mark.parametrize(
    ("one", "two", "generations"),
    [(*pair, 2) for pair in STRANGERS] + [(*pair, 1) for pair in FRIENDS],
)
async def test_only_those_who_share_a_scope_join_a_generation_in_flight(
    one: Who, two: Who, generations: int
) -> None:
    slow = FakeModel(pause_s=0.02)
    async with serving(settings_for_tests(tenants=tenants()), {"small": slow, "large": slow}) as on:
        first, second = await asyncio.gather(ask(on, one), ask(on, two))
        assert len(slow.calls) == generations
        collapsed = [reply.headers["cache-status"].count("collapsed") for reply in (first, second)]
        assert sum(collapsed) == 2 - generations


async def test_nobody_can_put_an_answer_into_anothers_cache() -> None:
    """The model answers each time something else: a poisoned answer would show."""
    count = iter(range(100))
    model = FakeModel(lambda _: [f"answer {next(count)}"])
    async with serving(
        settings_for_tests(tenants=tenants()), {"small": model, "large": model}
    ) as on:
        bens = (await ask(on, Who("ben"))).json()["choices"]
        for _ in range(3):
            headers = {"authorization": "Bearer ann", "cache-control": "no-cache",
                       "sluice-tags": "ben,tenant:ben"}  # fmt: skip
            body = {"model": "small", "messages": [{"role": "user", "content": "hello"}],
                    "user": "ben"}  # fmt: skip
            await on.client.post("/v1/chat/completions", json=body, headers=headers)
        again = await ask(on, Who("ben"))
        assert again.headers["sluice-origin"] == "exact"
        assert again.json()["choices"] == bens


names = st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True)
identities = st.tuples(
    names,
    st.one_of(
        st.sampled_from(["tenant", "user", "public"]), names.map(lambda name: f"group:{name}")
    ),
    st.one_of(st.none(), st.text(max_size=12), names),
)


@given(identities, identities)
def test_scopes_are_equal_only_where_the_settings_say_so(
    one: tuple[str, str, str | None], two: tuple[str, str, str | None]
) -> None:
    """Whatever a caller calls its users, and however tenants and groups are named."""
    scopes = [
        scope_of(Tenant(name=name, cache_scope=kind), user, request_id)
        for request_id, (name, kind, user) in (("r1", one), ("r2", two))
    ]
    if scopes[0] != scopes[1]:
        return
    (name, kind, user), (other_name, other_kind, other_user) = one, two
    assert kind == other_kind
    if kind in {"tenant", "user"}:
        assert name == other_name
    if kind == "user":
        assert user == other_user
