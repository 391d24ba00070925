"""What callers get wrong: each is a clear error that names the remedy, and the server goes on.

The rows are requests that people and programs really send. What a shape can be wrong in beyond
these is left to test_fuzz.py.
"""

from __future__ import annotations

import json

import pytest

from tests.support.program import CHAT, COMPLETIONS
from tests.support.served import chat

USER = {"role": "user", "content": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(autouse=True)
def goes_on(server, question):
    """After each of them, somebody else is answered."""
    yield
    assert server.post(chat(question(), max_tokens=1)).status == 200


def asked(**fields: object) -> bytes:
    return json.dumps(chat("hi", **fields)).encode()


def messages(*given: object) -> bytes:
    return asked(messages=list(given))


NOT_A_REQUEST = {
    "nothing": (b"", "invalid_json", "empty"),
    "blanks": (b" \r\n ", "invalid_json", "empty"),
    "half": (asked()[:40], "invalid_json", "not valid JSON"),
    "words": (b"What is 7 + 5?", "invalid_json", "not valid JSON"),
    "two": (asked() + asked(), "invalid_json", "not valid JSON"),
    "single quotes": (b"{'model': 'small'}", "invalid_json", "not valid JSON"),
    "a comma too many": (b'{"model": "small",}', "invalid_json", "not valid JSON"),
    "NaN": (asked().replace(b'"max_tokens": 12', b'"top_p": NaN'), "invalid_json", "not valid"),
    "latin-1": (asked().replace(b"hi", "hä".encode("latin-1")), "invalid_utf8", "UTF-8"),
    "cut character": (asked().replace(b"hi", "🦜".encode()[:3]), "invalid_utf8", "UTF-8"),
    "utf-16": (asked().decode().encode("utf-16"), "invalid_utf8", "UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf" + asked(), "invalid_json", "not valid JSON"),
    "half a surrogate": (asked().replace(b"hi", b"\\ud83e"), "invalid_json", "surrogate"),
    "a list": (b"[]", "invalid_value", "object"),
    "null": (b"null", "invalid_value", "object"),
    "a number": (b"1", "invalid_value", "object"),
}


@pytest.mark.parametrize("name", NOT_A_REQUEST)
def test_a_body_that_is_no_request_is_told_what_it_is(server, name) -> None:
    body, code, words = NOT_A_REQUEST[name]
    reply = server.post(body)
    assert reply.status == 400
    assert reply.error["code"] == code
    assert words in reply.error["message"]


WRONG = {
    # what is sent: the parameter that is named, and what the remedy speaks of
    "no model": (b'{"messages": [{"role": "user", "content": "hi"}]}', "model", "required"),
    "empty model": (asked(model=""), "model", ""),
    "no messages": (b'{"model": "small"}', "messages", "required"),
    "empty messages": (asked(messages=[]), "messages", ""),
    "messages as text": (asked(messages="hi"), "messages", "array"),
    "a message as text": (messages("hi"), "messages[0]", "object"),
    "no role": (messages({"content": "hi"}), "messages[0].role", "required"),
    "unknown role": (messages({"role": "robot", "content": "hi"}), "messages[0].role", "user"),
    "no content": (messages({"role": "user"}), "messages[0].content", "text parts"),
    "null content": (messages({**USER, "content": None}), "messages[0].content", "text parts"),
    "content as number": (messages({**USER, "content": 7}), "messages[0].content", "str"),
    "no parts": (messages({**USER, "content": []}), "messages[0].content", "text parts"),
    "second message": (messages(USER, {"role": "user"}), "messages[1].content", "text parts"),
    "unknown in message": (messages({**USER, "mood": 1}), "messages[0].mood", "leave it out"),
    "tool without id": (messages({**USER, "role": "tool"}), "messages[0].tool_call_id", "name"),
    "image": (messages({**USER, "content": [IMAGE]}), "messages[0].content[0].type", "text"),
    "audio": (messages({**USER, "content": [AUDIO]}), "messages[0].content[0].type", "text"),
    "audio asked for": (asked(modalities=["text", "audio"]), "modalities", "text"),
    "negative max_tokens": (asked(max_tokens=-1), "max_tokens", ">= 1"),
    "no tokens": (asked(max_tokens=0), "max_tokens", ">= 1"),
    "huge max_tokens": (asked(max_tokens=10**9), "max_tokens", "ask for less"),
    "max_tokens over 64 bits": (asked(max_tokens=10**30), "max_tokens", ""),
    "max_tokens as text": (asked(max_tokens="12"), "max_tokens", "int"),
    "max_tokens as fraction": (asked(max_tokens=1.5), "max_tokens", "int"),
    "max_tokens as bool": (asked(max_tokens=True), "max_tokens", "int"),
    "two lengths": (asked(max_completion_tokens=3), "max_tokens", "send one of them"),
    "hot": (asked(temperature=2.1), "temperature", "<= 2"),
    "cold": (asked(temperature=-0.1), "temperature", ">= 0"),
    "infinite": (asked(temperature=1e308 * 10).replace(b"Infinity", b"1e999"), "temperature", ""),
    "top_p": (asked(top_p=1.1), "top_p", "<= 1"),
    "top_p of zero": (asked(top_p=0), "top_p", "temperature"),
    "n of zero": (asked(n=0), "n", ">= 1"),
    "n of thousands": (asked(n=5000), "n", "<= 128"),
    "five stops": (asked(stop=list("abcde")), "stop", "at most 4"),
    "empty stop": (asked(stop=""), "stop", ""),
    "stop as number": (asked(stop=[1]), "stop[0]", "str"),
    "seed as text": (asked(seed="x"), "seed", "int"),
    "stream as text": (asked(stream="yes"), "stream", "bool"),
    "options without stream": (asked(stream_options={}), "stream_options", "leave it out"),
    "bias of a word": (asked(logit_bias={"hello": 1}), "logit_bias", "token ids"),
    "bias too strong": (asked(logit_bias={"5": 101}), "logit_bias[...]", "<= 100"),
    "bias outside": (asked(logit_bias={"99999999": 1}), "logit_bias", "tokens 0 to"),
    "bias outside 64 bits": (asked(logit_bias={str(10**30): 1}), "logit_bias", "0 to"),
    "bias of a negative": (asked(logit_bias={"-1": 1}), "logit_bias", "0 to"),
    "top_logprobs alone": (asked(top_logprobs=3), "top_logprobs", "logprobs"),
    "too many top_logprobs": (asked(logprobs=True, top_logprobs=21), "top_logprobs", "<= 20"),
    "logprobs as number": (asked(logprobs=3), "logprobs", "bool"),
    "tools": (asked(tools=[TOOL]), "tools", "leave tools out"),
    "tool_choice alone": (asked(tool_choice="required"), "tool_choice", "tools"),
    "a named tool alone": (asked(tool_choice=TOOL), "tool_choice", "tools"),
    "unknown in a tool": (asked(tools=[{**TOOL, "x": 1}]), "tools[0].x", "leave it out"),
    "huge number inside": (
        asked(chat_template_kwargs={"a": 10**30}), "chat_template_kwargs", "64 bits"
    ),
    "huge number unknown": (asked(nonsense=10**30), None, "64 bits"),
    "json mode": (asked(response_format={"type": "json_object"}), "response_format", "prompt"),
    "unknown format": (asked(response_format={"type": "xml"}), "response_format.type", "text"),
    "kept for later": (asked(store=True), "store", "leave store out"),
    "unknown": (asked(reasoning_effort="high"), "reasoning_effort", "leave it out"),
    "misspelt": (asked(temprature=0.5), "temprature", "leave it out"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_remedy(server, name, stream) -> None:
    body, param, words = WRONG[name]
    if stream and b'"stream' not in body:
        body = body.replace(b"{", b'{"stream": true, ', 1)
    reply = server.post(body)
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == param
    assert words in reply.error["message"]


@pytest.mark.parametrize("model", ["small", "large", "auto"])
def test_a_prompt_longer_than_the_context_is_told_by_how_much(server, model) -> None:
    reply = server.post(chat("word and " * 4000, model=model))
    assert reply.status == 400
    assert reply.error["code"] == "context_length_exceeded"
    assert reply.error["param"] == "messages"
    assert "at least" in reply.error["message"]


def test_an_answer_that_cannot_fit_behind_its_prompt_is_told_how_long_it_may_be(server) -> None:
    context = server.get("/v1/models/small").json["context_length"]
    text = "word and " * 100
    reply = server.post(chat(text, max_tokens=context))
    assert reply.error["code"] == "context_length_exceeded"
    longest = int(reply.error["message"].rstrip(".").split()[-1])
    assert server.post(chat(text, max_tokens=longest + 1)).status == 400
    assert server.post(chat(text, max_tokens=longest, stop=["e", "a", " ", "t"])).status == 200


@pytest.mark.parametrize(
    "model", ["gpt-17", "Small", "small ", "small\x00", "../large", "🦜", "a" * 9999]
)
def test_an_unknown_model_is_a_404_that_names_those_there_are(server, model) -> None:
    reply = server.post(chat("hi", model=model))
    assert reply.status == 404
    assert reply.error["code"] == "model_not_found"
    assert "auto, small, large" in reply.error["message"]


WRONG_TEXT = {
    "no prompt": ({}, "prompt", "required"),
    "null": ({"prompt": None}, "prompt", ""),
    "an empty list": ({"prompt": []}, "prompt", "send"),
    "an empty prompt": ({"prompt": ""}, "prompt", "empty"),
    "no ids": ({"prompt": [[]]}, "prompt[0]", "empty"),
    "a mixture": ({"prompt": ["a", 1]}, "prompt[1]", "mix"),
    "a negative id": ({"prompt": [1, -1]}, "prompt", ">= 0"),
    "an id outside": ({"prompt": [99_999_999]}, "prompt", "tokenizer"),
    "an id over 32 bits": ({"prompt": [2**40]}, "prompt", ""),
    "too many": ({"prompt": ["a"] * 65}, "prompt", "at most 64"),
    "too long": ({"prompt": "word and " * 4000}, "prompt", "at least"),
    "echo": ({"prompt": "a", "echo": True}, "echo", "leave it out"),
    "suffix": ({"prompt": "a", "suffix": "z"}, "suffix", "leave it out"),
    "best_of": ({"prompt": "a", "best_of": 3}, "best_of", "leave it out"),
    "logprobs": ({"prompt": "a", "logprobs": True}, "logprobs", "int"),
    "messages": ({"prompt": "a", "messages": [USER]}, "messages", "leave it out"),
}


@pytest.mark.parametrize("name", WRONG_TEXT)
def test_what_is_wrong_with_a_text_to_continue_is_named(server, name) -> None:
    fields, param, words = WRONG_TEXT[name]
    reply = server.post({"model": "small", **fields}, COMPLETIONS)
    assert reply.status == 400
    assert (reply.error["param"] or "").startswith(param)
    assert words in reply.error["message"]


@pytest.mark.parametrize("depth", [200, 2_000, 100_000])
@pytest.mark.parametrize("field", ["metadata", "chat_template_kwargs", "tools", "nonsense", "stop"])
def test_json_nested_without_end_is_refused_or_carried(server, field, depth) -> None:
    nested = b'{"a":' * depth + b"1" + b"}" * depth
    body = asked()[:-1] + b', "' + field.encode() + b'": ' + nested + b"}"
    reply = server.post(body)
    assert reply.status in {200, 400}
    assert reply.status == 200 or reply.error["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_a_405_that_names_the_right_one(server, path, method) -> None:
    with server.connect() as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode()
        )
        said = b"".join(iter(lambda: connection.recv(4096), b"")).lower()
    assert said.startswith(b"http/1.1 405")
    assert b"allow: post" in said


def test_a_long_answer_of_half_characters_ends_in_whole_ones(server, models) -> None:
    """Tokens of single bytes, forced one after the other, seldom make UTF-8."""
    reply = server.post(models.long("🦜", 60, temperature=2, seed=1))
    assert reply.status == 200
    reply.text.encode()
