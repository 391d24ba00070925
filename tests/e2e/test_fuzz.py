"""Requests of any shape against the real server: whatever is sent is answered, or refused in
OpenAI's shape; it is never our mistake (a 500), and never silence.

Three kinds of strangeness: a good request with some parameters replaced by any JSON, JSON of any
shape at all, and good requests at the far ends of what is allowed. Found so far by these tests and
by hand: nesting beyond the recursion limit, integers over 64 bits, a named tool_choice without
tools.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.wire.chat import ChatRequest
from gateway.wire.completions import CompletionRequest
from tests.support.program import CHAT, COMPLETIONS, Program
from tests.support.served import chat

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

text = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.one_of(
    st.integers(-3, 130),
    st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, -(10**30)]),
    st.floats(allow_nan=False, allow_infinity=False),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, text)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "robot"])
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "refusal", "file", ""])},
    optional={"text": text | anything, "refusal": text, "image_url": anything},
)
message = st.fixed_dictionaries(
    {"role": roles},
    optional={
        "content": text | st.lists(parts, max_size=2) | anything,
        "name": text,
        "tool_call_id": text,
        "tool_calls": st.lists(anything, max_size=1),
    },
)
tool = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": text})}
)
likely: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(message, max_size=3),
    "prompt": text | st.lists(text, max_size=2) | st.lists(st.integers(-1, 400), max_size=9),
    "model": st.sampled_from(["small", "large", "auto", "none"]),
    "logit_bias": st.dictionaries(st.integers(-1, 400).map(str), numbers, max_size=3),
    "stop": text | st.lists(text, max_size=5),
    "tools": st.lists(tool, max_size=1),
    "tool_choice": st.sampled_from(["none", "auto", "required"]) | tool,
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "stream_options": st.dictionaries(st.just("include_usage"), st.booleans()),
    "temperature": st.floats(-1, 3),
    "top_p": st.floats(-1, 2),
    "seed": numbers,
    "stream": st.booleans(),
    "n": st.integers(-1, 3),
    "max_tokens": st.integers(-1, 8),
}


def altered(fields: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Up to three parameters of a request (or one that there is not), likely or anything at all.
    Of many strange ones only the first would be looked at."""

    def valued(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({n: likely.get(n, anything) | anything for n in names})

    names = st.sampled_from(fields) | text
    return st.lists(names, max_size=3, unique=True).flatmap(valued)


def send(server: Program, body: dict[str, Any] | bytes, path: str) -> int:
    """What came of it, looked at closely."""
    reply = server.post(body, path)
    if reply.status == 200:
        if reply.headers["content-type"].startswith("text/event-stream"):
            assert reply.events[-1] == "[DONE]", reply.body[-500:]
        else:
            assert reply.json["choices"]
            assert all(choice["finish_reason"] for choice in reply.json["choices"])
        return 200
    assert reply.status in {400, 403, 404}, (reply.status, reply.body[:500], body)
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert len(reply.error["message"]) > 10
    return reply.status


@FUZZ
@given(changes=altered(ChatRequest.__struct_fields__))
@example(changes={"tool_choice": {"type": "function", "function": {"name": "f"}}})
@example(changes={"logit_bias": {"3": -100.0}, "top_logprobs": 20, "logprobs": True})
def test_a_chat_with_any_parameters_is_answered_or_refused(server, changes) -> None:
    send(server, {**chat("hi", max_tokens=2), **changes}, CHAT)


@FUZZ
@given(changes=altered(CompletionRequest.__struct_fields__))
def test_a_completion_with_any_parameters_is_answered_or_refused(server, changes) -> None:
    asked = {"model": "small", "prompt": "hi", "max_tokens": 2, **changes}
    send(server, asked, COMPLETIONS)


@FUZZ
@given(messages=likely["messages"], stream=st.booleans())
def test_a_chat_of_any_messages_is_answered_or_refused(server, messages, stream) -> None:
    send(server, chat("", messages=messages, stream=stream, max_tokens=2), CHAT)


@FUZZ
@given(body=anything.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_body_of_anything_is_refused(server, path, body) -> None:
    assert send(server, body, path) == 400


@FUZZ
@given(
    asked=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 2),
            "top_p": st.floats(0, 1, exclude_min=True),
            "top_k": st.integers(-1, 2**31 - 1),
            "min_p": st.floats(0, 1),
            "frequency_penalty": st.floats(-2, 2),
            "presence_penalty": st.floats(-2, 2),
            "repetition_penalty": st.floats(0, 10, exclude_min=True),
            "seed": st.integers(-(2**63), 2**63 - 1),
            "n": st.integers(1, 4),
            "stop": st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=4),
            "logit_bias": st.dictionaries(
                st.integers(0, 383).map(str), st.floats(-100, 100), max_size=9
            ),
            "stream": st.booleans(),
        },
    )
)
def test_every_parameter_within_its_range_is_answered(server, question, asked) -> None:
    assert send(server, chat(question(), max_tokens=6, **asked), CHAT) == 200
