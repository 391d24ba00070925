"""Budgets and token rates in the request's path, on a real port."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import httpx
import openai
import pytest

from cascade.price import estimate_prompt_tokens
from engine.contract import Call, Message, Part, UpstreamFailed
from gateway.catalog import LONGEST_UNKNOWN, ModelCard
from gateway.settings import Tenant
from gateway.tenants.spend import NOT_TEXT_TOKENS, Appraiser
from tests.support.fake import FakeModel
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import eventually

IN, OUT = 1000, 2000
"""Nano-US-dollars a token of the models that are served here."""


async def ask(running: Running, text: str, **more: Any) -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    body = {"model": "small", "messages": messages, "max_tokens": 20, **more}
    return await running.client.post("/v1/chat/completions", json=body)


async def used_nano(running: Running) -> int:
    reply = await running.client.get("/admin/tenants/default")
    [budget] = reply.json()["budgets"]
    return round(budget["used_usd"] * 1e9)


def settings(**limits: Any) -> Any:
    return settings_for_tests(tenants=(Tenant(name="default", **limits),))


async def test_an_answer_is_settled_at_its_own_price_and_a_hit_costs_nothing() -> None:
    async with serving(settings(budget_usd_day=1.0)) as running:
        for _ in range(3):
            assert (await ask(running, "one two")).status_code == 200
        # 7 prompt tokens of which 2 were in the prefix tree, and "You said: one two"
        assert await used_nano(running) == 5 * IN + 4 * OUT


async def test_identical_requests_in_flight_are_paid_once() -> None:
    models = {"small": FakeModel(pause_s=0.02), "large": FakeModel()}
    async with serving(settings(budget_usd_day=1.0), models) as running:
        replies = await asyncio.gather(*(ask(running, "one two") for _ in range(5)))
        assert {reply.status_code for reply in replies} == {200}
        assert await used_nano(running) == 5 * IN + 4 * OUT


async def test_when_the_budget_is_spent_it_is_openais_429_and_hits_go_on() -> None:
    # "first" may cost (5 + 80) · IN + 20 · OUT = 0.000125 dollars, and costs 0.000011.
    async with serving(settings(budget_usd_month=0.00013)) as running:
        assert (await ask(running, "first")).status_code == 200
        refused = await ask(running, "second")
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "insufficient_quota")
        assert error["type"] == "insufficient_quota"
        assert "budget_usd_month" in error["message"]
        assert int(refused.headers["retry-after"]) > 0
        assert (await ask(running, "first")).headers["sluice-origin"] == "exact"
        smaller = await ask(running, "second", max_tokens=1)
        assert smaller.status_code == 200


async def test_a_stream_that_is_cut_is_settled_by_what_was_produced() -> None:
    slow = FakeModel(lambda _: [f"w{i} " for i in range(200)], pause_s=0.2)
    async with serving(settings(budget_usd_day=1.0), {"small": slow, "large": slow}) as running:
        body = {"model": "small", "messages": [{"role": "user", "content": "x" * 400}],
                "stream": True}  # fmt: skip
        async with running.client.stream("POST", "/v1/chat/completions", json=body) as reply:
            seen = 0
            async for line in reply.aiter_lines():
                seen += '"w' in line
                if seen == 5:
                    break
        await eventually(lambda: slow.closed_early and not running.system.drain.inflight)
        [cut] = slow.trails[0].wasted
        assert cut.usage.completion_tokens >= 5
        assert await used_nano(running) == 5 * IN + cut.usage.completion_tokens * OUT
        await same_everywhere(running)


async def same_everywhere(running: Running) -> None:
    """Budget and account are settled by one number, and who looks it up reads its tokens."""
    rollup = running.system.rollup
    rollup.fold()
    assert sum(rollup.wasted().values()) == sum(rollup.spent().values()) == await used_nano(running)
    record = rollup.recent[-1]
    reply = await running.client.get(f"/admin/decisions/{record.id}")
    [told] = reply.json()["decisions"]
    assert told["money_nano"]["waste"] == await used_nano(running)
    fresh = told["prompt_tokens"] - told["cached_tokens"]
    assert fresh * IN + told["completion_tokens"] * OUT == await used_nano(running)


async def test_a_prompt_that_was_computed_is_paid_before_the_first_token() -> None:
    slow = FakeModel(gate=asyncio.Event())
    async with serving(settings(budget_usd_day=1.0), {"small": slow, "large": slow}) as at:
        with pytest.raises(httpx.ReadTimeout):
            await at.client.post(
                "/v1/chat/completions",
                json={"model": "small", "messages": [{"role": "user", "content": "one"}]},
                timeout=0.5,
            )
        await eventually(lambda: slow.closed_early and not at.system.drain.inflight)
        assert await used_nano(at) == 5 * IN
        await same_everywhere(at)


async def test_what_failed_in_the_middle_is_settled_by_what_was_produced() -> None:
    broken = FakeModel(late_error=UpstreamFailed("no"))
    async with serving(settings(budget_usd_day=1.0), {"small": broken, "large": broken}) as at:
        assert (await ask(at, "one two")).status_code == 502
        assert await used_nano(at) == 5 * IN + 4 * OUT
        await same_everywhere(at)


async def test_budgets_stand_in_the_metrics_before_anybody_has_asked() -> None:
    async with serving(settings(budget_usd_day=2.5)) as running:
        who = '{period="day",tenant="default"}'

        async def told() -> bool:
            text = (await running.client.get("/metrics")).text
            return f"sluice_budget_limit_usd{who} 2.5" in text

        await eventually(told)
        assert (await ask(running, "one two")).status_code == 200
        text = (await running.client.get("/metrics")).text
        [used] = [line for line in text.splitlines() if f"sluice_budget_used_usd{who}" in line]
        assert float(used.split()[1]) == pytest.approx((5 * IN + 4 * OUT) * 1e-9)


async def test_what_failed_before_it_began_costs_nothing() -> None:
    broken = FakeModel(error=UpstreamFailed("no"))
    async with serving(settings(budget_usd_day=1.0), {"small": broken, "large": broken}) as running:
        assert (await ask(running, "one")).status_code == 502
        assert await used_nano(running) == 0


async def test_tokens_per_minute_are_estimated_then_corrected_and_told_in_headers() -> None:
    async with serving(settings(tpm=200)) as running:
        reply = await ask(running, "one two")  # estimated at 6 + 20
        assert reply.headers["x-ratelimit-limit-tokens"] == "200"
        assert reply.headers["x-ratelimit-remaining-tokens"] == str(200 - 7 - 4)
        assert reply.headers["x-ratelimit-reset-tokens"].endswith("s")
        refused = await ask(running, "three", max_tokens=190)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) > 0
        too_large = await ask(running, "three", max_tokens=500)
        error = too_large.json()["error"]
        assert (too_large.status_code, error["code"]) == (400, "request_too_large")
        assert error["type"] == "invalid_request_error"
        assert "200 tokens a minute" in error["message"]
        assert "retry-after" not in too_large.headers
        assert (await ask(running, "one two")).headers["sluice-origin"] == "exact"


@pytest.mark.parametrize("text", ["hello", "", "ünïcödé " * 50, "🦊" * 100])
def test_a_bound_counts_every_byte_as_a_token_and_no_more_than_a_context_holds(text: str) -> None:
    card = ModelCard("m", "f", 1000, 1.0, 2.0)
    other = ModelCard("n", "f", 1000, 10.0, 20.0)
    appraiser = Appraiser({"m": card, "n": other}, ("m", "n"))
    call = Call("chat", "m", "s", messages=(Message("user", (Part("text", text),)),), max_tokens=10)
    bound = min(1000, len(text.encode()) + 80) * IN + 10 * OUT
    worth = appraiser.worth(call)
    assert worth.most == bound
    assert worth.tokens == estimate_prompt_tokens(call) + 10
    auto = appraiser.worth(Call("chat", "auto", "s", messages=call.messages, max_tokens=10))
    assert auto.most == 11 * bound
    open_end = appraiser.worth(Call("text", "m", "s", prompt=(1, 2, 3), n=2))
    assert open_end.most == 4 * IN + 2 * 1000 * OUT


def test_a_bound_is_what_makes_the_answer_end() -> None:
    appraiser = Appraiser({"far": ModelCard("far", "f", None, 0.0, 2.0)}, ("far",))
    for asked, reserved in ((None, LONGEST_UNKNOWN), (5, 5), (100_000, 100_000)):
        call = Call("text", "far", "s", prompt="x", max_tokens=asked)
        assert appraiser.worth(call).most == reserved * OUT


def test_a_bound_is_that_of_the_dearest_who_may_answer_in_its_place() -> None:
    cheap, dear = ModelCard("m", "f", 1000, 1.0, 2.0), ModelCard("n", "f", 1000, 10.0, 20.0)
    appraiser = Appraiser({"m": cheap, "n": dear}, ("m", "n"), {"m": ("n",)})
    call = Call("text", "m", "s", prompt=(1, 2, 3), max_tokens=5)
    assert appraiser.worth(call).most == 10 * (4 * IN + 5 * OUT)


def test_an_image_is_bounded_whatever_its_bytes() -> None:
    appraiser = Appraiser({"m": ModelCard("m", "f", None, 1.0, 2.0)}, ("m",))
    sizes = {
        appraiser.worth(Call("chat", "m", "s", max_tokens=1, messages=(
            Message("user", (Part("image_url", "x" * size),)),
        ))).most
        for size in (10, 1_000_000)
    }  # fmt: skip
    assert sizes == {(NOT_TEXT_TOKENS + 80) * IN + OUT}


async def test_what_is_too_large_is_asked_once_by_openais_client() -> None:
    tried = 0

    async def count(_: httpx.Request) -> None:
        nonlocal tried
        tried += 1

    async with (
        serving(settings(tpm=200)) as running,
        httpx.AsyncClient(event_hooks={"request": [count]}) as http,
        openai.AsyncOpenAI(
            api_key="none", base_url=f"http://127.0.0.1:{running.port}/v1", http_client=http
        ) as client,
    ):
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(
                model="small", messages=[{"role": "user", "content": "x"}], max_tokens=500
            )
    assert tried == 1


# --------------------------------------------------------------------------- who inherits


def pair(**right: Any) -> Any:
    """Two tenants that share what they are told; `left` begins."""
    common: dict[str, Any] = {"cache_scope": "group:pair"}
    left = Tenant(name="left", keys=(hash_of("sk-left"),), budget_usd_day=1.0, tpm=5000, **common)
    other = Tenant(name="right", keys=(hash_of("sk-right"),), **common, **right)
    return settings_for_tests(tenants=(Tenant(name="default"), left, other))


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


async def ask_as(running: Running, tenant: str) -> httpx.Response:
    body = {"model": "small", "messages": [{"role": "user", "content": "one two"}],
            "stream": True, "max_tokens": 20}  # fmt: skip
    key = {"authorization": f"Bearer sk-{tenant}"}
    return await running.client.post("/v1/chat/completions", json=body, headers=key)


async def left_leaves(running: Running, model: FakeModel) -> httpx.Response:
    """Both ask the same; the one who began leaves. What the other hears."""
    first = asyncio.create_task(ask_as(running, "left"))
    await eventually(lambda: model.calls)
    second = asyncio.create_task(ask_as(running, "right"))
    await eventually(lambda: running.system.drain.inflight == 2)
    await asyncio.sleep(0.05)
    first.cancel()
    await eventually(lambda: running.system.drain.inflight == 1 or second.done())
    assert model.gate is not None
    model.gate.set()
    heard = await second
    await eventually(lambda: not running.system.drain.inflight)
    return heard


async def spent_by(running: Running) -> tuple[dict[str, int], dict[str, int]]:
    """Nano-US-dollars by tenant: as the account says, and as the budgets do."""
    rollup = running.system.rollup
    rollup.fold()
    account = {"left": 0, "right": 0}
    for (tenant, _), nano in rollup.spent().items():
        account[tenant] += nano
    budgets = {}
    for tenant in account:
        told = (await running.client.get(f"/admin/tenants/{tenant}")).json()["budgets"]
        budgets[tenant] = round(told[0]["used_usd"] * 1e9) if told else 0
    return account, budgets


async def tokens_used(running: Running, tenant: str) -> int:
    key = {"authorization": f"Bearer sk-{tenant}"}
    reply = await running.client.post("/v1/chat/completions", content=b"{", headers=key)
    return 5000 - int(reply.headers["x-ratelimit-remaining-tokens"])


async def test_who_inherits_a_generation_is_charged_by_account_and_budget_alike() -> None:
    model = FakeModel(gate=asyncio.Event())
    limits = pair(budget_usd_day=1.0, tpm=5000)
    async with serving(limits, {"small": model, "large": model}) as running:
        heard = await left_leaves(running, model)
        assert heard.headers["sluice-origin"] == "joined"
        assert heard.text.endswith("[DONE]\n\n")
        account, budgets = await spent_by(running)
        assert account == budgets == {"left": 0, "right": 5 * IN + 4 * OUT}
        assert await tokens_used(running, "left") == 0
        assert await tokens_used(running, "right") == 7 + 4
        assert len(model.calls) == 1


async def test_an_heir_without_limits_takes_over_and_the_first_is_free() -> None:
    model = FakeModel(gate=asyncio.Event())
    async with serving(pair(), {"small": model, "large": model}) as running:
        assert (await left_leaves(running, model)).status_code == 200
        account, budgets = await spent_by(running)
        assert account == {"left": 0, "right": 5 * IN + 4 * OUT}
        assert budgets["left"] == 0
        assert await tokens_used(running, "left") == 0


async def test_where_the_heir_cannot_pay_it_ends_and_the_first_pays_for_what_there_was() -> None:
    model = FakeModel(gate=asyncio.Event())
    broke = pair(budget_usd_day=0.00001)
    async with serving(broke, {"small": model, "large": model}) as running:
        heard = await left_leaves(running, model)
        assert '"code":"answer_orphaned"' in heard.text
        account, budgets = await spent_by(running)
        assert account == budgets == {"left": 5 * IN, "right": 0}
        assert model.closed_early
