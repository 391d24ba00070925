"""Spans, as a real collector gets them from the real server."""

from __future__ import annotations

import pytest

from engine.contract import BadCall
from gateway.settings import Settings, Traces
from gateway.verify import impossibilities
from tests.support.collector import attributes, collecting
from tests.support.fake import FakeModel
from tests.support.serving import serving, settings_for_tests

CHAT = "/v1/chat/completions"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "nobody may read this"


def asked(**more: object) -> dict[str, object]:
    return {"model": "large", "messages": [{"role": "user", "content": SECRET}], **more}


def traced(endpoint: str, share: float = 1.0) -> Settings:
    return settings_for_tests(traces=Traces(endpoint=endpoint, share=share))


async def test_an_answer_is_a_span_with_a_child_for_each_stage() -> None:
    with collecting() as collector:
        async with serving(traced(collector.endpoint)) as running:
            await running.client.post(CHAT, json=asked(max_tokens=9, seed=4))
        span = collector.named("chat large")
        told = attributes(span)
        children = collector.children(span)
    assert collector.services == {"sluice"}
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "large"
    assert told["gen_ai.request.max_tokens"] == 9
    assert told["gen_ai.request.seed"] == 4
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert told["gen_ai.usage.output_tokens"] > 0
    assert told["sluice.tenant"] == "default"
    assert told["sluice.cache.exact"] == "miss"
    assert set(children) >= {"exact"}
    for child in children.values():
        assert span.start_time_unix_nano <= child.start_time_unix_nano + 1e6
        assert child.end_time_unix_nano <= span.end_time_unix_nano + 1e6


async def test_a_hit_says_so_and_cost_nothing() -> None:
    with collecting() as collector:
        async with serving(traced(collector.endpoint)) as running:
            for _ in range(2):
                await running.client.post(CHAT, json=asked())
        first, second = map(attributes, [s for s in collector.spans if s.name == "chat large"])
    assert first["sluice.origin"] == "large"
    assert second["sluice.origin"] == second_origin(second) == "exact"
    assert second["sluice.computed_tokens"] == 0


def second_origin(told: dict[str, object]) -> object:
    """What the cache's own attribute stands for."""
    return {"hit": "exact"}.get(str(told["sluice.cache.exact"]))


async def test_a_callers_context_is_the_parent_and_ours_goes_on_inwards() -> None:
    seen: list[str] = []

    class Watching(FakeModel):
        def __call__(self, call, trail):
            seen.append(trail.traceparent)
            return super().__call__(call, trail)

    models = {"small": Watching(name="small"), "large": Watching(name="large")}
    with collecting() as collector:
        async with serving(traced(collector.endpoint), models) as running:
            await running.client.post(CHAT, json=asked(), headers={"traceparent": PARENT})
        span = collector.named("chat large")
    _, trace, parent, _ = PARENT.split("-")
    assert span.trace_id.hex() == trace
    assert span.parent_span_id.hex() == parent
    assert seen == [f"00-{trace}-{span.span_id.hex()}-01"]


@pytest.mark.parametrize("broken", ["", "nonsense", "00-0-0-01", PARENT + "-x" * 300])
async def test_a_broken_context_of_a_caller_is_no_parent(broken: str) -> None:
    with collecting() as collector:
        async with serving(traced(collector.endpoint)) as running:
            reply = await running.client.post(CHAT, json=asked(), headers={"traceparent": broken})
            assert reply.status_code == 200
        assert collector.named("chat large").parent_span_id == b""


async def test_an_error_is_in_the_span() -> None:
    def refuse(_: object) -> list[str]:
        raise BadCall("This model takes no poems.")

    models = {name: FakeModel(refuse, name=name) for name in ("small", "large")}
    with collecting() as collector:
        async with serving(traced(collector.endpoint), models) as running:
            reply = await running.client.post(CHAT, json=asked())
            assert reply.status_code == 400
        span = collector.named("chat large")
    assert attributes(span)["error.type"] == "400"
    assert span.status.message == "This model takes no poems."


async def test_nothing_of_a_prompt_or_an_answer_is_in_a_span() -> None:
    with collecting() as collector:
        async with serving(traced(collector.endpoint)) as running:
            reply = await running.client.post(CHAT, json=asked(user="u-1", stop=["zzz"]))
        text = reply.json()["choices"][0]["message"]["content"]
        sent = b"".join(span.SerializeToString() for span in collector.spans)
    assert SECRET.encode() not in sent
    assert text
    assert text.encode() not in sent


async def test_a_share_of_zero_sends_nothing_and_a_sampled_caller_goes_first() -> None:
    with collecting() as collector:
        async with serving(traced(collector.endpoint, share=0.0)) as running:
            await running.client.post(CHAT, json=asked())
            await running.client.post(CHAT, json=asked(seed=1), headers={"traceparent": PARENT})
        assert len([s for s in collector.spans if s.name == "chat large"]) == 1


async def test_a_collector_that_is_not_there_harms_nobody() -> None:
    async with serving(traced("http://127.0.0.1:1")) as running:
        reply = await running.client.post(CHAT, json=asked())
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("traces", "key"),
    [
        (Traces(endpoint="collector:4318"), "endpoint"),
        (Traces(endpoint="ftp://x"), "endpoint"),
        (Traces(share=1.5), "share"),
    ],
)
def test_settings_that_cannot_work_are_refused(traces: Traces, key: str) -> None:
    found = dict(impossibilities(settings_for_tests(traces=traces)))
    assert ("traces", key) in found
