from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract import TooMany
from gateway.settings import Tenant
from gateway.tenants.limits import Limits
from tests.support.fake import FakeModel
from tests.support.serving import serving, settings_for_tests
from tests.support.speakers import eventually

CHAT = "/v1/chat/completions"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, **limit: int) -> Limits:
    return Limits([Tenant(name="t", **limit)], clock)  # type: ignore[arg-type]


def test_a_minute_holds_as_many_requests_as_allowed() -> None:
    clock = Clock()
    some = limits(clock, rpm=3)
    for _ in range(3):
        some.enter("t")
    with pytest.raises(TooMany) as raised:
        some.enter("t")
    wait_s = raised.value.retry_after_s
    assert wait_s is not None
    assert 60 < wait_s <= 120
    clock.now += wait_s + 0.001
    some.enter("t")


@given(st.integers(1, 50), st.lists(st.floats(0.0, 40.0), max_size=120))
def test_who_waits_as_told_is_let_in_and_nobody_gets_twice_the_rate(
    rpm: int, gaps: list[float]
) -> None:
    clock = Clock()
    some = limits(clock, rpm=rpm)
    arrivals = []
    for gap in gaps:
        clock.now += gap
        try:
            some.enter("t")
        except TooMany as error:
            clock.now += (error.retry_after_s or 0.0) + 1e-6
            some.enter("t")
        arrivals.append(clock.now)
    for now in arrivals:
        assert sum(now - 60 < one <= now for one in arrivals) < 2 * rpm + 1


def test_requests_in_flight_are_bounded_and_leaving_makes_room() -> None:
    some = limits(Clock(), max_concurrent=1)
    some.enter("t")
    with pytest.raises(TooMany, match="in flight"):
        some.enter("t")
    some.leave("t")
    some.enter("t")


def test_headers_tell_limit_remaining_and_reset() -> None:
    clock = Clock()
    some = limits(clock, rpm=10)
    some.enter("t")
    headers = dict(some.headers("t"))
    assert headers[b"x-ratelimit-limit-requests"] == b"10"
    assert headers[b"x-ratelimit-remaining-requests"] == b"9"
    assert headers[b"x-ratelimit-reset-requests"] == b"6.000s"
    assert some.headers("other") == []


async def test_a_request_counts_until_its_answer_has_ended() -> None:
    tenant = Tenant(name="default", max_concurrent=1)
    settings = settings_for_tests(tenants=(tenant,))
    gate = asyncio.Event()
    async with serving(settings, {"small": FakeModel(gate=gate), "large": FakeModel()}) as running:
        body = {"model": "small", "messages": [{"role": "user", "content": "hello"}]}
        first = asyncio.create_task(running.client.post(CHAT, json=body))
        await eventually(lambda: running.models["small"].calls)
        refused = await running.client.post(CHAT, json=body)
        gate.set()
        assert (await first).status_code == 200
        again = await running.client.post(CHAT, json=body)
    assert refused.status_code == 429
    assert again.status_code == 200


async def test_who_is_over_a_limit_is_refused_before_the_body_is_read_as_anything() -> None:
    tenant = Tenant(name="default", rpm=1)
    async with serving(settings_for_tests(tenants=(tenant,))) as running:
        body = {"model": "small", "messages": [{"role": "user", "content": "hello"}]}
        assert (await running.client.post(CHAT, json=body)).status_code == 200
        refused = await running.client.post(
            CHAT, content=b"{ no JSON", headers={"x-request-id": "mine"}
        )
        running.system.rollup.fold()
        booked = running.system.rollup.recent[-1]
        metrics = (await running.client.get("/metrics")).text
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["x-request-id"] == "mine"
    assert 60 < int(refused.headers["retry-after"]) <= 120
    assert refused.headers["x-ratelimit-limit-requests"] == "1"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (booked.tenant, booked.status, booked.client_id) == ("default", 429, "mine")
    counted = [line for line in metrics.splitlines() if line.startswith("sluice_requests_total")]
    assert sum(float(line.split()[-1]) for line in counted if 'status="429"' in line) == 1


async def test_a_connection_goes_on_after_a_refusal() -> None:
    tenant = Tenant(name="default", max_concurrent=1)
    gate = asyncio.Event()
    settings = settings_for_tests(tenants=(tenant,))
    async with serving(settings, {"small": FakeModel(gate=gate), "large": FakeModel()}) as running:
        body = {"model": "small", "messages": [{"role": "user", "content": "hello"}]}
        first = asyncio.create_task(running.client.post(CHAT, json=body))
        await eventually(lambda: running.models["small"].calls)
        refused = [await running.client.post(CHAT, json=body) for _ in range(3)]
        gate.set()
        assert (await first).status_code == 200
    assert [one.status_code for one in refused] == [429, 429, 429]
    assert all("connection" not in one.headers for one in refused)


async def test_what_cannot_be_read_counts_as_a_request_and_gives_its_slot_back() -> None:
    tenant = Tenant(name="default", rpm=2, max_concurrent=1)
    async with serving(settings_for_tests(tenants=(tenant,))) as running:
        told = [await running.client.post(CHAT, content=b"{ no JSON") for _ in range(3)]
    assert [one.status_code for one in told] == [400, 400, 429]


async def test_several_calls_of_one_request_are_counted_once() -> None:
    tenant = Tenant(name="default", rpm=3, max_concurrent=1)
    async with serving(settings_for_tests(tenants=(tenant,))) as running:
        for stream in (False, True):
            body = {"model": "small", "prompt": ["a", "b", "c"], "stream": stream}
            reply = await running.client.post("/v1/completions", json=body)
            assert reply.status_code == 200
        assert reply.headers["x-ratelimit-remaining-requests"] == "1"
        assert reply.headers["cache-status"].startswith("exact; hit; ttl=")
        assert reply.headers["cache-status"].endswith('detail="3 of 3 prompts"')
        await running.client.post("/v1/completions", json=body)
        refused = await running.client.post("/v1/completions", json=body)
        assert refused.status_code == 429
        running.system.rollup.fold()
        assert running.system.rollup.recent[-1].status == 429
