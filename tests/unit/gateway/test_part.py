"""Whose account a gateway tells, where others share its stores."""

from __future__ import annotations

import csv
import io

import pytest

from gateway.parts.ledger import part_of
from gateway.settings import ExactCache, Limits, SemanticCache
from tests.support.serving import serving, settings_for_tests

REDIS = "redis://:a-secret@127.0.0.1:1/0"


def test_a_gateway_by_itself_says_nothing() -> None:
    assert part_of(settings_for_tests()) == ""
    off = SemanticCache(enabled=False, store=REDIS)
    assert part_of(settings_for_tests(semantic=off)) == ""


def test_what_is_shared_is_named_and_where_it_is_kept_is_not() -> None:
    told = part_of(settings_for_tests(exact=ExactCache(store=REDIS), limits=Limits(store=REDIS)))
    assert "shares [cache.exact], [limits] with it" in told
    assert "budgets is everybody's" in told
    assert "a-secret" not in told
    assert "budgets" not in part_of(settings_for_tests(exact=ExactCache(store=REDIS)))


@pytest.mark.parametrize(("store", "code"), [(REDIS, "own"), ("memory://", "")])
async def test_a_row_of_csv_tells_it_in_a_word(store: str, code: str) -> None:
    async with serving(settings_for_tests(exact=ExactCache(store=store))) as running:
        body = {"model": "small", "messages": [{"role": "user", "content": "x"}]}
        await running.client.post("/v1/chat/completions", json=body)
        told = (await running.client.get("/admin/usage?by=model&format=csv")).text
    [row] = csv.DictReader(io.StringIO(told))
    assert row["part"] == code


async def test_usage_and_page_both_tell_it() -> None:
    async with serving(settings_for_tests(exact=ExactCache(store=REDIS))) as running:
        usage = (await running.client.get("/admin/usage")).json()
        page = (await running.client.get("/dashboard/data")).json()
    assert usage["part"] == page["part"]
    assert usage["part"].startswith("This gateway's part")
