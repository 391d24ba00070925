"""What a hostile or a careless user does with parameters and headers that are all allowed."""

from __future__ import annotations

import json

import pytest

from tests.support.program import COMPLETIONS, post_bytes, read_reply
from tests.support.served import MAX_RUNNING, Models, chat


def choice(reply):
    return reply.json["choices"][0]


# --------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("temperature", [0, 2])
def test_a_token_that_is_forced_is_all_that_is_said(server, question, temperature) -> None:
    bias = {"100": 100}
    reply = server.post(
        chat(question(), logit_bias=bias, logprobs=True, temperature=temperature, seed=1)
    )
    tokens = {entry["token"] for entry in choice(reply)["logprobs"]["content"]}
    assert len(tokens) == 1
    assert reply.json["usage"]["completion_tokens"] == 12


def test_tokens_that_are_forbidden_are_not_said(server, question) -> None:
    """A model is first told to say only token 100, and then to say anything but that."""
    text = question()

    def said(bias: dict[str, int]) -> set[str]:
        reply = server.post(chat(text, logit_bias=bias, logprobs=True, temperature=2, seed=1))
        return {entry["token"] for entry in choice(reply)["logprobs"]["content"]}

    only = said({"100": 100})
    assert not only & said({"100": -100})


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_ends_at_once_is_empty_and_complete(
    server, question, models: Models, stream
) -> None:
    end = next(iter(models.never_stops()))
    reply = server.post(chat(question(), logit_bias={end: 100}, stream=stream))
    if stream:
        assert reply.streamed_text == ""
        assert reply.events[-2]["choices"][0]["finish_reason"] == "stop"
    else:
        assert reply.text == ""
        assert choice(reply)["finish_reason"] == "stop"


STOPS = {
    "emoji": ["🦜"],
    "a family of joined emoji": ["👩‍👩‍👧‍👦", "👩"],
    "a combining accent": ["e\u0301"],
    "the replacement character": ["\ufffd"],
    "NUL": ["\x00"],
    "a space": [" "],
    "one inside another": ["a", "ab", "b", "ba"],
    "200,000 characters": ["a" * 200_000],
}


@pytest.mark.parametrize("name", STOPS)
def test_a_strange_stop_string_is_looked_for_like_any_other(server, models, question, name) -> None:
    asked = models.long(question(), 60)
    plain = server.post(asked)
    whole = server.post({**asked, "stop": STOPS[name]})
    stream = server.post({**asked, "stop": STOPS[name], "stream": True}, cache_control="no-store")
    found = [plain.text.index(stop) for stop in STOPS[name] if stop in plain.text]
    assert whole.text == stream.streamed_text
    if not found:
        assert whole.text == plain.text
        assert choice(whole)["finish_reason"] == "length"
    else:
        assert not any(stop in whole.text for stop in STOPS[name])
        assert plain.text.startswith(whole.text)
        assert choice(whole)["finish_reason"] == "stop"


def test_more_choices_than_can_run_at_once_are_all_answered(server, question) -> None:
    count = 4 * MAX_RUNNING
    reply = server.post(chat(question(), n=count, max_tokens=2, temperature=1, seed=3))
    assert [one["index"] for one in reply.json["choices"]] == list(range(count))


def test_eight_choices_in_a_stream_all_end(server, question) -> None:
    reply = server.post(chat(question(), n=8, stream=True, temperature=1, seed=1))
    assert reply.events[-1] == "[DONE]"
    ends = [c["index"] for e in reply.events[:-1] for c in e["choices"] if c["finish_reason"]]
    assert sorted(ends) == list(range(8))


def test_more_than_can_wait_is_a_503_with_a_time_to_come_back(server, question) -> None:
    prompts = [question() for _ in range(64)]
    asked = {"model": "small", "prompt": prompts, "n": 128, "max_tokens": 1}
    reply = server.post(asked, COMPLETIONS)
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    server.wait_idle()
    assert server.post({**asked, "n": 1}, COMPLETIONS).status == 200


# --------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "self", "loop"])
def test_what_a_template_is_given_cannot_break_it(server, question, name) -> None:
    reply = server.post(chat(question(), chat_template_kwargs={name: [1]}))
    assert reply.status == 200 if name == "loop" else reply.status == 400


@pytest.mark.parametrize("piece", ["a", "a ", "1", " ", "\x00"])
def test_a_megabyte_of_prompt_is_refused_with_its_length(server, piece) -> None:
    reply = server.post(chat(piece * (150_000 // len(piece))))
    assert reply.status == 400
    assert reply.error["code"] == "context_length_exceeded"


def test_names_of_special_tokens_in_a_question_are_plain_text(server, models) -> None:
    """A user who writes the end of his turn does not end it."""
    config = json.loads((models.small / "tokenizer_config.json").read_text("utf-8"))
    end = config["eos_token"]
    short = server.post(chat("ab")).json["usage"]["prompt_tokens"]
    long = server.post(chat(f"a{end}b")).json["usage"]["prompt_tokens"]
    assert long > short + 1


# --------------------------------------------------------------------------- headers


HEADERS = {
    "route": ("sluice-route: large", 200),
    "no route": ("sluice-route: ", 200),
    "a route to nowhere": ("sluice-route: nowhere", 404),
    "a route of bytes": ("sluice-route: \xff\xfe", 404),
    "as many tags as may be": ("sluice-tags: " + ",".join(map(str, range(32))), 200),
    "thousands of tags": ("sluice-tags: " + ",".join(map(str, range(9000))), 400),
    "an endless tag": ("sluice-tags: " + "x" * 9000, 400),
    "an endless age": ("cache-control: max-age=" + "9" * 400, 200),
    "a negative age": ("cache-control: max-age=-1", 400),
    "odd directives": ("cache-control: ,,=, foo, bar=baz", 200),
    "a long id": ("x-request-id: " + "a" * 9000, 200),
    "an id of bytes": ("x-request-id: \xe9\xe9", 200),
    "a key of bytes": ("authorization: \xe9\xe9", 401),
    "two keys": ("authorization: Bearer sk-alice\r\nauthorization: Bearer sk-bob", 401),
    "another scheme": ("authorization: Basic YTpi", 401),
    "another type": ("content-type: text/html", 200),
    "an expectation": ("expect: 200-ok", 200),
    "a thousand headers": ("\r\n".join(f"x-{n}: {n}" for n in range(1000)), 200),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_strange_header_is_understood_ignored_or_refused(server, question, name) -> None:
    lines, status = HEADERS[name]
    body = json.dumps(chat(question(), max_tokens=1)).encode()
    head, _, rest = post_bytes(body).partition(b"\r\n\r\n")
    with server.connect() as connection:
        connection.sendall(head + b"\r\n" + lines.encode("latin-1") + b"\r\n\r\n" + rest)
        reply = read_reply(connection)
    assert reply.status == status
    assert len(reply.headers["x-request-id"]) <= 128
