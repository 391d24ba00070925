from __future__ import annotations

import json
from typing import Any

import pytest

from engine.contract import BadCall, Call
from gateway.catalog import Place
from gateway.wire import chat, completions

PLACE = Place("m", "tenant:t", "f", 5)
ASKED = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def chat_call(**fields: Any) -> Call:
    request, extra = chat.new_decoder().decode(json.dumps({**ASKED, **fields}).encode())
    chat.max_tokens_of(request)
    return chat.call_of(request, extra, PLACE)


def text_calls(**fields: Any) -> tuple[Call, ...]:
    body = json.dumps({"model": "m", "prompt": "x", **fields}).encode()
    request, extra = completions.new_decoder().decode(body)
    return completions.calls_of(request, extra, PLACE)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y"),
        ({"messages": user([{"type": "image_url", "image_url": {"url": "u"}}])},
         "messages[0].content[0].type"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"store": True}, "store"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"seed": 2**63}, "seed"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadCall) as raised:
        chat_call(**fields)
    assert raised.value.param == param
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b'{"model": \x01}', "byte 10"),
        (b'{"model": "\xff"}', "not valid UTF-8 (byte 11)"),
        (b"[1]", "expected object, got array"),
        (b'{"model": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, ""),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(BadCall) as raised:
        chat.new_decoder().decode(body)
    assert said in raised.value.message


def test_an_image_is_refused_with_what_to_send_instead() -> None:
    with pytest.raises(BadCall, match="send parts of type 'text'") as raised:
        chat_call(messages=user([{"type": "image_url", "image_url": {"url": "u"}}]))
    assert raised.value.code == "unsupported_modality"


def test_null_means_left_out() -> None:
    nulls = dict.fromkeys((*chat.ROLES, "unheard_of"))
    del nulls["model"], nulls["messages"]
    assert chat_call(**nulls) == chat_call()


def test_what_nobody_knows_is_kept_in_canonical_form() -> None:
    assert chat_call(zed={"b": 1, "a": 2}, alpha=1).extra == '{"alpha":1,"zed":{"a":2,"b":1}}'
    assert chat_call().extra is None


def test_text_and_text_parts_are_the_same_question() -> None:
    assert chat_call(messages=user("hi")) == chat_call(
        messages=user([{"type": "text", "text": "hi"}])
    )


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    call = chat_call(
        messages=[
            *user("x"),
            {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls,
             "annotations": [], "audio": None, "function_call": None},
            {"role": "tool", "content": "42", "tool_call_id": "c"},
            {"role": "assistant", "content": None, "refusal": "I will not."},
        ]
    )  # fmt: skip
    assert call.messages[1].tool_calls[0].name == "f"
    assert call.messages[2].tool_call_id == "c"
    assert call.messages[3].text == "I will not."


def test_numbers_reach_the_call() -> None:
    call = chat_call(
        temperature=1, top_p=0.5, top_k=-1, min_p=0.1, frequency_penalty=-2, presence_penalty=2,
        repetition_penalty=1.5, logit_bias={"20": 1, "3": -1}, seed=7, n=2, stop="x",
        logprobs=True, top_logprobs=3, parallel_tool_calls=False,
    )  # fmt: skip
    sampling = call.sampling
    assert isinstance(sampling.temperature, float)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 0.5, 0)
    assert sampling.logit_bias == ((3, -1.0), (20, 1.0))
    assert (call.n, call.stop, call.logprobs, call.top_logprobs) == (2, ("x",), True, 3)
    assert call.parallel_tool_calls is False
    assert (call.model, call.scope, call.fingerprint, call.max_tokens) == ("m", "tenant:t", "f", 5)


def test_tools_and_formats_are_canonical() -> None:
    one = {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}}
    two = {"function": {"parameters": {"a": 2, "b": 1}, "name": "f"}, "type": "function"}
    assert chat_call(tools=[one]).tools == chat_call(tools=[two]).tools
    assert chat_call(response_format={"type": "text"}).response_format is None
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    assert '"schema":{"type":"object"}' in str(chat_call(response_format=schema).response_format)
    named = {"type": "function", "function": {"name": "f"}}
    assert chat_call(tools=[one], tool_choice=named).tool_choice is not None


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("x", ["x"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
        ("", [""]),
    ],
)
def test_every_form_of_prompt_becomes_calls(prompt: Any, prompts: list[Any]) -> None:
    assert [call.prompt for call in text_calls(prompt=prompt)] == prompts


@pytest.mark.parametrize("prompt", [[], [[]], ["a", 1], [-1], ["x"] * 65, 5])
def test_a_prompt_that_is_none_is_refused(prompt: Any) -> None:
    with pytest.raises(BadCall) as raised:
        text_calls(prompt=prompt)
    assert str(raised.value.param).startswith("prompt")


@pytest.mark.parametrize("field", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}])
def test_what_completions_do_not_do_is_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(BadCall) as raised:
        text_calls(**field)
    assert raised.value.param == next(iter(field))
    assert text_calls(echo=False, suffix=None, best_of=1, n=1)


def test_completions_count_logprobs_by_number() -> None:
    (call,) = text_calls(logprobs=0)
    assert (call.logprobs, call.top_logprobs) == (True, 0)
    assert text_calls()[0].logprobs is False


@pytest.mark.parametrize("escape", ["\\ud800", "\\udc00", "\\ud83ehi", "\\ud800\\u0041"])
def test_half_a_surrogate_pair_is_told_as_such(escape: str) -> None:
    body = f'{{"model":"m","messages":[{{"role":"user","content":"{escape}"}}]}}'.encode()
    with pytest.raises(BadCall, match="one half of a surrogate pair") as raised:
        chat.new_decoder().decode(body)
    assert raised.value.code == "invalid_json"
    with pytest.raises(BadCall, match="not valid JSON"):
        chat.new_decoder().decode(body[:-1])
