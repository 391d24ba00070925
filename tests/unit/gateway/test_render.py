from __future__ import annotations

import json
import math
from typing import Any

import pytest

from engine.contract import (
    Answer,
    Burst,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Start,
    TokenLogprob,
    Usage,
)
from gateway.wire.chat_answer import ChatSurface
from gateway.wire.collect import collect
from gateway.wire.completions_answer import CompletionSurface, Offsets, text_logprobs
from gateway.wire.render import ChunkWriter, Look, Surface, whole

START = Start("abc", 1_700_000_000, 'mo"del', "large")
END = End(Usage(5, 3, 2, 6))
PLAIN = Look("f" * 32, 1, False)
TOKEN = TokenLogprob("é", "é".encode(), -0.25, (TokenLogprob("e", b"e", -math.inf),))


async def answer(*events: Event) -> Answer:
    for event in events:
        yield event


def text(*pieces: str) -> list[Event]:
    return [*(Delta(0, "text", piece) for piece in pieces), Finish(0, "stop")]


async def as_json(surface: Surface, look: Look, *middle: Event) -> dict[str, Any]:
    collected = await collect(answer(START, *middle, END))
    found: dict[str, Any] = json.loads(whole(surface, collected, look))
    return found


def as_stream(surface: Surface, look: Look, *middle: Event, start: Start = START) -> list[Any]:
    writer = ChunkWriter(surface, look)
    data = b"".join(writer.write(event) for event in (start, *middle, END))
    assert data.endswith(b"\n\n")
    return [json.loads(part.removeprefix("data: ")) for part in data.decode().split("\n\n")[:-1]]


async def test_a_chat_answer_has_openais_shape() -> None:
    body = await as_json(ChatSurface(), PLAIN, *text("Hel", 'lo "you"\x00'))
    assert body == {
        "id": "chatcmpl-abc",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": 'mo"del',
        "system_fingerprint": "fp_ffffffffffff",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": 'Hello "you"\x00', "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 2},
            "sluice": {"computed_tokens": 6, "saved_tokens": 2},
        },
    }


def test_a_stream_says_who_speaks_then_text_then_why_it_ended() -> None:
    first, second, third = as_stream(ChatSurface(), PLAIN, *text("hi\x00"))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert second["choices"][0]["delta"] == {"content": "hi\x00"}
    assert second["choices"][0]["finish_reason"] is None
    assert third["choices"][0] == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip
    assert "usage" not in second


def test_usage_comes_last_where_it_was_asked_for() -> None:
    chunks = as_stream(ChatSurface(), Look("f", 1, False, include_usage=True), *text("hi"))
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 3
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 8


@pytest.mark.parametrize("surface", [ChatSurface, CompletionSurface])
@pytest.mark.parametrize("logprobs", [True, False])
async def test_a_burst_renders_like_its_events_now_and_from_its_memo(
    surface: type[Any], logprobs: bool
) -> None:
    look = Look("f", 2, logprobs, include_usage=True)
    middle: list[Event] = [
        Delta(0, "text", "é\x00", (1,), (TOKEN,) if logprobs else ()),
        Delta(1, "text", "second"),
        Finish(1, "length"),
        Finish(0, "stop"),
    ]
    reads: list[int] = []

    def read() -> tuple[Any, ...]:
        reads.append(1)
        return tuple(middle)

    burst = Burst(read, {}, read)
    plain_json = await as_json(surface(), look, *middle)
    plain_stream = as_stream(surface(), look, *middle)
    for _ in range(2):
        assert await as_json(surface(), look, burst) == plain_json
        assert as_stream(surface(), look, burst) == plain_stream
    assert len(reads) == 2, "rendered once for each form"
    other = Start("other", 7, "m", "exact")
    chunks = as_stream(surface(), look, burst, start=other)
    assert {chunk["id"].split("-")[1] for chunk in chunks} == {"other"}
    assert {chunk["created"] for chunk in chunks} == {7}


async def test_log_probabilities_carry_bytes_and_no_infinity() -> None:
    look = Look("f", 1, True)
    delta = Delta(0, "text", "é", (1,), (TOKEN,))
    expected = {
        "token": "é",
        "logprob": -0.25,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "e", "logprob": -9999.0, "bytes": [101]}],
    }
    body = await as_json(ChatSurface(), look, delta, Finish(0, "stop"))
    assert body["choices"][0]["logprobs"] == {"content": [expected], "refusal": None}
    chunk = as_stream(ChatSurface(), look, delta)[1]
    assert chunk["choices"][0]["logprobs"]["content"] == [expected]


async def test_tool_calls_are_put_together() -> None:
    deltas: list[Event] = [
        Delta(0, "tool", '{"function":{"arguments":"","name":"f"},"id":"c1","index":0}'),
        Delta(0, "tool", '{"function":{"arguments":"{\\"a\\":"},"index":0}'),
        Delta(0, "tool", '{"function":{"arguments":"1}"},"index":0}'),
        Finish(0, "tool_calls"),
    ]
    choice = (await as_json(ChatSurface(), PLAIN, *deltas))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]
    chunk = as_stream(ChatSurface(), PLAIN, *deltas)[1]
    assert chunk["choices"][0]["delta"]["tool_calls"][0]["id"] == "c1"


async def test_reasoning_is_kept_apart_from_the_text() -> None:
    body = await as_json(ChatSurface(), PLAIN, Delta(0, "reasoning", "hm"), *text("yes"))
    assert body["choices"][0]["message"]["reasoning_content"] == "hm"
    assert body["choices"][0]["message"]["content"] == "yes"


async def test_a_completion_has_the_older_shape() -> None:
    look = Look("f", 1, True)
    two = [Delta(0, "text", "é", (), (TOKEN,)), Delta(0, "text", "é", (), (TOKEN,))]
    body = await as_json(CompletionSurface(), look, *two, Finish(0, "stop"))
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["choices"][0] == {
        "index": 0,
        "text": "éé",
        "finish_reason": "stop",
        "logprobs": {
            "tokens": ["é", "é"],
            "token_logprobs": [-0.25, -0.25],
            "top_logprobs": [{"e": -9999.0}, {"e": -9999.0}],
            "text_offset": [0, 1],
        },
    }
    chunks = as_stream(CompletionSurface(), look, *two)
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [1]]


async def test_an_answer_without_an_end_is_no_answer() -> None:
    with pytest.raises(Failed, match="cut before its end"):
        await collect(answer(START, *text("x")))


def test_text_offsets_are_of_the_text_and_not_of_how_bytes_are_shown() -> None:
    parts = [b"a", b"\xe7", b"\x8c\xab", b"b"]
    tokens = [TokenLogprob(f"bytes:{part!r}", part, -1.0) for part in parts]
    shape = text_logprobs(tokens, Offsets())
    assert shape["text_offset"] == [0, 1, 1, 2]
    alike = (TokenLogprob("x", b"x", -1.0), TokenLogprob("x", b"x", -2.0))
    (top,) = text_logprobs([TokenLogprob("x", b"x", -1.0, alike)], Offsets())["top_logprobs"]
    assert top == {"x": -1.0}
