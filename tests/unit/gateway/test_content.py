"""Prompts and answers are in the log where a tenant's policy says so, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.observe.content import MOST_CHARACTERS
from gateway.settings import Logs, Tenant
from tests.support.fake import FakeModel
from tests.support.serving import Running, serving, settings_for_tests

SECRET = "the prince of Serendip"


async def lines(logs: Logs, tenant: Tenant, **body: Any) -> AsyncIterator[dict[str, Any]]:
    async with serving(settings_for_tests(logs=logs, tenants=(tenant,))) as running:
        await ask(running, **body)
        reply = await ask(running, **body)  # a hit
        assert reply == 200
    for line in running.logged.getvalue().splitlines():
        yield json.loads(line)


async def ask(running: Running, **body: Any) -> int:
    asked = {"model": "small", "messages": [{"role": "user", "content": SECRET}], **body}
    return (await running.client.post("/v1/chat/completions", json=asked)).status_code


@pytest.mark.parametrize(("everybody", "own"), [(False, None), (False, False), (True, False)])
async def test_nothing_of_it_is_written_by_default(everybody: bool, own: bool | None) -> None:
    tenant = Tenant(name="default", log_content=own)
    async for line in lines(Logs(level="debug", content=everybody), tenant):
        assert SECRET not in json.dumps(line)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("everybody", "own"), [(True, None), (False, True)])
async def test_all_of_it_is_written_where_that_is_wanted_hits_included(
    everybody: bool, own: bool | None, stream: bool
) -> None:
    tenant = Tenant(name="default", log_content=own)
    found = [
        line
        async for line in lines(Logs(content=everybody), tenant, stream=stream)
        if line["event"] == "content"
    ]
    assert len(found) == 2
    for line in found:
        assert line["asked"] == [{"role": "user", "text": SECRET}]
        assert line["answered"] == [f"You said: {SECRET} "]
        assert line["tenant"] == "default"


async def test_what_is_very_long_is_cut_and_says_so() -> None:
    long = FakeModel(lambda _: ["x" * (MOST_CHARACTERS + 5)])
    settings = settings_for_tests(tenants=(Tenant(name="default", log_content=True),))
    async with serving(settings, {"small": long, "large": long}) as running:
        await ask(running)
    [line] = [
        json.loads(one) for one in running.logged.getvalue().splitlines() if b"answered" in one
    ]
    assert line["answered"][0].endswith("x… (5 characters more)")
