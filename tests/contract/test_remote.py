"""A remote model against a real HTTP server, over both transports."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
import pytest

from cascade.address import Addresses
from cascade.guard import Backoff, Breaker
from cascade.price import estimate_prompt_tokens
from cascade.remote import ERRORS, Remote, Upstream
from cascade.transport import open_transport
from engine.contract import (
    CUT,
    AnswerError,
    BadCall,
    Call,
    DeadlineExceeded,
    Delta,
    End,
    Event,
    Finish,
    Json,
    Message,
    Overloaded,
    Part,
    Sampling,
    Start,
    ToolCall,
    Trail,
    UpstreamFailed,
    Usage,
    Waste,
)
from tests.support.speakers import PATIENCE_S, eventually
from tests.support.upstream import (
    HELLO,
    USAGE,
    Server,
    cut,
    piece,
    reply,
    stall,
    stream,
    upstream,
)

KEY = "sk-secret-of-ours"
ASK = Call("chat", "far", "t", messages=(Message("user", (Part("text", "Hi"),)),))


@pytest.fixture(params=["http1", "httpx"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncBaseTransport]:
    opened = open_transport(http2=request.param == "httpx")
    yield opened
    await opened.aclose()


def remote(
    server: Server, transport: httpx.AsyncBaseTransport, attempts: int = 3, **fields: Any
) -> Remote:
    return Remote(
        Upstream("far", "their-model", KEY, **fields),
        Addresses(server.url, allow_private=True),
        transport,
        breaker=Breaker(time.monotonic, failures=3, cool_down_s=60.0),
        backoff=Backoff(random.Random(0), attempts=attempts, first_s=0.001, most_s=0.05),
    )


async def ask(model: Remote, call: Call = ASK, trail: Trail | None = None) -> list[Event]:
    return [event async for event in model(call, trail or Trail("r1"))]


async def collect(model: Remote, seen: list[Event]) -> None:
    """What came before an error counts."""
    async for event in model(ASK, Trail("r1")):
        seen.append(event)  # noqa: PERF401


def text_of(events: list[Event]) -> str:
    return "".join(e.payload for e in events if isinstance(e, Delta) and e.kind == "text")


async def test_an_answer_arrives_as_it_was_said(transport: httpx.AsyncBaseTransport) -> None:
    async with upstream(HELLO) as server:
        events = await ask(remote(server, transport))
    assert events == [
        Start("r1", 1_700_000_123, "far", "far"),
        Delta(0, "text", "Hel"),
        Delta(0, "text", "lo"),
        Finish(0, "stop"),
        End(Usage(9, 2, 0, 11)),
    ]


@pytest.mark.parametrize(
    ("asked", "bounded", "sent"),
    [
        ({"longest": 900}, False, 900),
        ({"longest": 900}, True, None),
        ({"longest": 900, "max_tokens": 5}, False, 5),
        ({}, False, None),
    ],
)
async def test_a_server_that_bounds_no_answer_is_told_where_to_end(
    transport: httpx.AsyncBaseTransport, asked: dict[str, int], bounded: bool, sent: int | None
) -> None:
    async with upstream(HELLO) as server:
        field = "max_completion_tokens"
        model = remote(server, transport, bounded=bounded, max_tokens_field=field)
        await ask(model, replace(ASK, **asked))  # type: ignore[arg-type]
    body = server.asked[0].body
    assert body.get(field) == sent
    assert "longest" not in body


async def test_the_key_and_the_model_are_theirs(transport: httpx.AsyncBaseTransport) -> None:
    async with upstream(HELLO) as server:
        await ask(remote(server, transport, headers=(("x-team", "blue"),)))
    asked = server.asked[0]
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["x-team"] == "blue"
    assert asked.headers["host"] == f"127.0.0.1:{server.port}"
    assert asked.body["model"] == "their-model"
    assert asked.body["stream"] is True


async def test_a_trace_goes_on_at_the_server(transport: httpx.AsyncBaseTransport) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with upstream(HELLO) as server:
        model = remote(server, transport)
        for trail in (Trail("r1", traceparent=parent), Trail("r2")):
            async for _ in model(ASK, trail):
                pass
    assert server.asked[0].headers["traceparent"] == parent
    assert "traceparent" not in server.asked[1].headers


async def test_everything_that_was_asked_is_sent(transport: httpx.AsyncBaseTransport) -> None:
    call = Call(
        "chat",
        "far",
        "t",
        messages=(
            Message("user", (Part("text", "Look"), Part("image_url", '{"url":"https://x/y"}'))),
            Message("assistant", (), None, (ToolCall("t1", "f", '{"a":1}'),)),
            Message("tool", (Part("text", "7"),), tool_call_id="t1"),
        ),
        sampling=Sampling(temperature=0.0, seed=7, presence_penalty=0.5, logit_bias=((5, -1.0),)),
        max_tokens=11,
        stop=("END",),
        logprobs=True,
        top_logprobs=2,
        tools=Json('[{"function":{"name":"f"},"type":"function"}]'),
        parallel_tool_calls=False,
        response_format=Json('{"type":"json_object"}'),
        extra=Json('{"reasoning_effort":"low","stream":false}'),
    )
    async with upstream(HELLO) as server:
        await ask(remote(server, transport, max_tokens_field="max_completion_tokens"), call)
    body = server.asked[0].body
    assert body["messages"][0]["content"][1] == {
        "type": "image_url",
        "image_url": {"url": "https://x/y"},
    }
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert body["messages"][1]["content"] is None
    assert body["messages"][2] == {"role": "tool", "content": "7", "tool_call_id": "t1"}
    assert body["temperature"] == 0.0
    assert body["seed"] == 7
    assert body["presence_penalty"] == 0.5
    assert "frequency_penalty" not in body
    assert body["logit_bias"] == {"5": -1.0}
    assert body["max_completion_tokens"] == 11
    assert body["stop"] == ["END"]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["tools"][0]["function"]["name"] == "f"
    assert body["parallel_tool_calls"] is False
    assert body["response_format"] == {"type": "json_object"}
    assert body["reasoning_effort"] == "low"
    assert body["stream"] is True, "what a caller adds cannot change how we read"


async def test_text_completions_go_to_their_own_path(transport: httpx.AsyncBaseTransport) -> None:
    said = {"choices": [{"index": 0, "text": "Paris", "finish_reason": "length"}]}
    async with upstream(stream(said, USAGE)) as server:
        call = Call("text", "far", "t", prompt="The capital", max_tokens=1)
        events = await ask(remote(server, transport), call)
    assert server.asked[0].path == "/v1/completions"
    assert server.asked[0].body["prompt"] == "The capital"
    assert text_of(events) == "Paris"
    assert Finish(0, "length") in events


@pytest.mark.parametrize("split", [1, 7])
async def test_bytes_may_be_cut_anywhere(transport: httpx.AsyncBaseTransport, split: int) -> None:
    async with upstream(stream(piece("Grüße "), piece("𝄞", "stop"), USAGE, split=split)) as server:
        assert text_of(await ask(remote(server, transport))) == "Grüße 𝄞"


async def test_a_connection_is_used_again(transport: httpx.AsyncBaseTransport) -> None:
    async with upstream(HELLO) as server:
        model = remote(server, transport)
        for _ in range(4):
            await ask(model)
    assert server.connections == 1


async def test_tool_calls_reasoning_and_log_probabilities(
    transport: httpx.AsyncBaseTransport,
) -> None:
    opened = {"index": 0, "id": "t1", "type": "function", "function": {"name": "f"}}
    more = {"index": 0, "function": {"arguments": '{"a":'}}
    token = {"token": "ok", "logprob": -0.25, "bytes": [111, 107], "top_logprobs": []}
    sure = piece("ok")
    sure["choices"][0]["logprobs"] = {"content": [token]}
    script = stream(
        piece(reasoning_content="hm"),
        sure,
        piece(tool_calls=[opened]),
        piece(tool_calls=[more], finish="tool_calls"),
        USAGE,
    )
    async with upstream(script) as server:
        events = await ask(remote(server, transport))
    deltas = [event for event in events if isinstance(event, Delta)]
    assert [delta.kind for delta in deltas] == ["reasoning", "text", "tool", "tool"]
    assert deltas[1].logprobs[0].logprob == -0.25
    assert json.loads(deltas[2].payload) == opened
    assert json.loads(deltas[3].payload) == more
    assert Finish(0, "tool_calls") in events


async def test_a_server_that_does_not_stream_is_read_all_the_same(
    transport: httpx.AsyncBaseTransport,
) -> None:
    whole = {
        "id": "x",
        "created": 5,
        "choices": [
            {"index": 0, "message": {"content": "Whole"}, "finish_reason": "stop"},
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
    }
    async with upstream(reply(200, whole)) as server:
        events = await ask(remote(server, transport))
    assert text_of(events) == "Whole"
    assert events[-1] == End(Usage(9, 1, 8, 2))


async def test_usage_is_estimated_where_none_is_told(transport: httpx.AsyncBaseTransport) -> None:
    async with upstream(stream(piece("a"), piece("b", "stop"), done=False)) as server:
        events = await ask(remote(server, transport))
    assert isinstance(events[-1], End)
    assert events[-1].usage.completion_tokens == 2


# ------------------------------------------------------------------ what goes wrong before Start


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(
    transport: httpx.AsyncBaseTransport, status: int
) -> None:
    async with upstream(reply(status, {"error": {"message": "no"}}), HELLO) as server:
        assert text_of(await ask(remote(server, transport))) == "Hello"
    assert len(server.asked) == 2


async def test_a_lost_connection_is_tried_again_before_the_first_byte(
    transport: httpx.AsyncBaseTransport,
) -> None:
    async with upstream(cut(), HELLO) as server:
        assert text_of(await ask(remote(server, transport))) == "Hello"


async def test_an_error_in_place_of_the_first_chunk_is_tried_again(
    transport: httpx.AsyncBaseTransport,
) -> None:
    async with upstream(stream({"error": {"message": "cold"}}), HELLO) as server:
        assert text_of(await ask(remote(server, transport))) == "Hello"


async def test_tries_end(transport: httpx.AsyncBaseTransport) -> None:
    async with upstream(reply(503, {"error": {"message": "full"}}, "retry-after: 0")) as server:
        with pytest.raises(Overloaded, match="full") as raised:
            await ask(remote(server, transport, attempts=3))
    assert len(server.asked) == 3
    assert raised.value.retry_after_s == 0.0


async def test_a_long_retry_after_is_passed_on_and_not_waited_for(
    transport: httpx.AsyncBaseTransport,
) -> None:
    async with upstream(reply(429, {"error": {"message": "slow"}}, "retry-after: 30")) as server:
        with pytest.raises(Overloaded) as raised:
            await ask(remote(server, transport))
    assert len(server.asked) == 1
    assert raised.value.retry_after_s == 30.0


async def test_what_the_caller_did_wrong_is_told_and_not_tried_again(
    transport: httpx.AsyncBaseTransport,
) -> None:
    error = {"message": "too big", "param": "max_tokens", "code": "x"}
    async with upstream(reply(400, {"error": error})) as server:
        model = remote(server, transport)
        for _ in range(5):
            with pytest.raises(BadCall, match="too big") as raised:
                await ask(model)
    assert len(server.asked) == 5, "and the breaker has nothing to do with it"
    assert (raised.value.param, raised.value.code) == ("max_tokens", "x")


@pytest.mark.parametrize(
    ("status", "said"), [(401, "api_key_env"), (403, "api_key_env"), (404, "their-model")]
)
async def test_our_own_misconfiguration_is_not_the_callers_error(
    transport: httpx.AsyncBaseTransport, status: int, said: str
) -> None:
    body = {"error": {"message": f"bad key {KEY}"}}
    async with upstream(reply(status, body)) as server:
        with pytest.raises(UpstreamFailed, match=said) as raised:
            await ask(remote(server, transport))
    assert raised.value.status == 502
    assert KEY not in raised.value.message


@pytest.mark.parametrize("body", [b"<html>nginx</html>", b"", b'"text"', b"[1]", b"\xff\xfe"])
async def test_an_error_page_of_any_kind_is_told(
    transport: httpx.AsyncBaseTransport, body: bytes
) -> None:
    async with upstream(reply(418, body)) as server:
        with pytest.raises(UpstreamFailed, match="answered 418"):
            await ask(remote(server, transport))


async def test_nobody_there_is_an_upstream_failure(transport: httpx.AsyncBaseTransport) -> None:
    async with upstream(HELLO) as server:
        pass
    with pytest.raises(UpstreamFailed, match="cannot be reached"):
        await ask(remote(server, transport, attempts=2))


async def test_silence_before_the_first_byte_has_its_own_limit(
    transport: httpx.AsyncBaseTransport,
) -> None:
    async with upstream(stall()) as server:
        with pytest.raises(UpstreamFailed, match="did not begin"):
            await ask(remote(server, transport, first_byte_timeout_s=0.05))


async def test_the_callers_deadline_is_the_callers_time_out(
    transport: httpx.AsyncBaseTransport,
) -> None:
    async with upstream(stall()) as server:
        with pytest.raises(DeadlineExceeded):
            await ask(remote(server, transport), trail=Trail("r", deadline=time.monotonic() + 0.05))


# ------------------------------------------------------------------ what goes wrong after Start


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (cut(piece("Hel")), "broke the connection off"),
        (stream(piece("Hel"), done=False), "in the middle"),
        (stream(piece("Hel"), {"error": {"message": "oom"}}), "oom"),
        (stream(piece("Hel"), b"not json"), "cannot be read"),
    ],
)
async def test_a_failure_after_start_is_never_tried_again(
    transport: httpx.AsyncBaseTransport, script: Any, said: str
) -> None:
    async with upstream(script) as server:
        seen: list[Event] = []
        with pytest.raises(UpstreamFailed, match=said):
            await collect(remote(server, transport), seen)
    assert isinstance(seen[0], Start)
    assert not any(isinstance(event, End) for event in seen)
    assert len(server.asked) == 1


async def test_silence_in_the_middle_has_its_own_limit(
    transport: httpx.AsyncBaseTransport,
) -> None:
    async def one_then_nothing(asked: Any, writer: asyncio.StreamWriter) -> None:
        await stream(piece("Hel"))(asked, _Without(writer))
        await asyncio.sleep(30)

    async with upstream(one_then_nothing) as server:
        model = remote(server, transport, between_bytes_timeout_s=0.5)
        with pytest.raises(UpstreamFailed, match="silent"):
            await ask(model)


class _Without:
    """A writer that drops the end of the answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def write(self, data: bytes) -> None:
        if b"[DONE]" in data:
            data = b"%x\r\n" % 2000 + data.partition(b"\r\n")[2].partition(b"data: [DONE]")[0]
        if data != b"0\r\n\r\n":
            self._writer.write(data)


async def test_a_hang_up_reaches_the_server(transport: httpx.AsyncBaseTransport) -> None:
    async with upstream(stall(piece("Hel"))) as server:
        answer = remote(server, transport)(ASK, Trail("r1"))
        async with aclosing(answer):
            assert isinstance(await anext(answer), Start)
        async with asyncio.timeout(PATIENCE_S):
            await server.hung_up.wait()


# ------------------------------------------------------------------ the breaker


async def test_a_broken_server_is_left_alone(transport: httpx.AsyncBaseTransport) -> None:
    async with upstream(reply(500, {"error": {"message": "no"}})) as server:
        model = remote(server, transport, attempts=1)
        for _ in range(3):
            with pytest.raises(UpstreamFailed):
                await ask(model)
        with pytest.raises(Overloaded, match="left alone") as raised:
            await ask(model)
    assert len(server.asked) == 3
    assert 0 < (raised.value.retry_after_s or 0) <= 60
    assert model.breaker.state == "open"


async def test_a_caller_who_gives_up_says_nothing_about_the_server(
    transport: httpx.AsyncBaseTransport,
) -> None:
    async with upstream(stall()) as server:
        model = remote(server, transport)
        for _ in range(4):
            task = asyncio.create_task(ask(model))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert model.breaker.state == "closed"


async def test_every_error_has_a_status() -> None:
    for kind in (BadCall, DeadlineExceeded, Overloaded, UpstreamFailed):
        assert issubclass(kind, AnswerError)
        assert kind.status in {400, 408, 502, 503}


async def cut_of(model: Remote, events: int) -> list[Waste]:
    """What is told of an answer that is left after so many events."""
    trail = Trail("r1")
    async with aclosing(model(ASK, trail)) as answer:
        for _ in range(events):
            await anext(answer)
    return trail.wasted


async def test_a_cut_answer_is_told_by_estimate_and_by_the_servers_counts_where_it_sent_them(
    transport: httpx.AsyncBaseTransport,
) -> None:
    prompt = estimate_prompt_tokens(ASK)
    many = stream(piece("Hel"), piece("lo, twelve b."))
    counted = stream(piece("Hel") | {"usage": USAGE["usage"]}, piece("lo"))
    async with upstream(many) as server:
        [guessed] = await cut_of(remote(server, transport), 3)
    assert guessed == Waste("far", Usage(prompt, 4, 0, prompt + 4), CUT, estimated=True)
    async with upstream(counted) as server:
        [told] = await cut_of(remote(server, transport), 3)
    assert told == Waste("far", Usage(9, 2, 0, 11), CUT)


@pytest.mark.parametrize("by", ["hang-up", "deadline", "silence"])
async def test_a_prompt_that_was_sent_and_given_up_was_computed(
    transport: httpx.AsyncBaseTransport, by: str
) -> None:
    trail = Trail("r1")
    if by == "deadline":
        trail.deadline = time.monotonic() + 0.3
    async with upstream(stall()) as server:
        patience = {"first_byte_timeout_s": 0.3} if by == "silence" else {}
        model = remote(server, transport, **patience)
        asking = asyncio.create_task(ask(model, ASK, trail))
        await eventually(lambda: server.asked)
        if by == "hang-up":
            asking.cancel()
        with pytest.raises((asyncio.CancelledError, DeadlineExceeded, UpstreamFailed)):
            await asking
    prompt = estimate_prompt_tokens(ASK)
    assert trail.wasted == [Waste("far", Usage(prompt, 0, 0, prompt), CUT, estimated=True)]


async def test_what_was_refused_or_never_sent_took_nothing(
    transport: httpx.AsyncBaseTransport,
) -> None:
    trail = Trail("r1")
    async with upstream(reply(500, {"error": {"message": "no"}})) as server:
        with pytest.raises(UpstreamFailed):
            await ask(remote(server, transport), ASK, trail)
        port = server.port
    gone = remote(Server([], port=port), transport, attempts=1)
    with pytest.raises(UpstreamFailed):
        await ask(gone, ASK, trail)
    assert trail.wasted == []


async def test_failed_tries_are_counted_by_their_kind(transport: httpx.AsyncBaseTransport) -> None:
    full = reply(429, {"error": {"message": "full"}})
    async with upstream(full, full, reply(500, {}), reply(400, {}), cut(piece("a"))) as server:
        model = remote(server, transport)
        for error in (UpstreamFailed, BadCall, UpstreamFailed):
            with pytest.raises(error):
                await ask(model)
        port = server.port
    assert model.errors == dict.fromkeys(ERRORS, 0) | {"full": 2, "status": 1, "broken": 1}
    gone = remote(Server([], port=port), transport, attempts=2)
    with pytest.raises(UpstreamFailed):
        await ask(gone)
    assert gone.errors["unreachable"] == 2
