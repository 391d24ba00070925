"""Caching and joining as a client sees them, on the real server with the real engine."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from tests.support.program import COMPLETIONS, post_bytes, read_reply, wait_until
from tests.support.served import ALICE, BOB, SHARED, chat

MODELS = pytest.mark.parametrize("model", ["small", "large"])


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --------------------------------------------------------------------------- a hit


@MODELS
def test_what_was_asked_before_is_answered_again_at_no_cost(server, question, model) -> None:
    asked = chat(question(), model=model)
    first, second = server.post(asked), server.post(asked)
    assert first.headers["cache-status"] == "exact; fwd=miss"
    assert first.headers["sluice-origin"] == model
    assert "age" not in first.headers
    assert first.computed > 0
    assert re.fullmatch(r"exact; hit; ttl=\d+", second.headers["cache-status"])
    assert second.headers["sluice-origin"] == "exact"
    assert second.headers["sluice-model"] == model
    assert int(second.headers["age"]) >= 0
    assert second.computed == 0
    assert second.json["choices"] == first.json["choices"]
    assert second.json["id"] != first.json["id"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert second.json["usage"][name] == first.json["usage"][name]


@pytest.mark.parametrize("streamed_first", [False, True])
def test_json_and_stream_are_served_by_one_entry(server, question, streamed_first) -> None:
    asked = chat(question(), logprobs=True, top_logprobs=2)
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    if streamed_first:
        stream, whole = server.post(streamed), server.post(asked)
        hit = whole
    else:
        whole, stream = server.post(asked), server.post(streamed)
        hit = stream
    assert hit.headers["sluice-origin"] == "exact"
    assert stream.streamed_text == whole.text
    *_, last, done = stream.events
    assert done == "[DONE]"
    assert last["usage"]["completion_tokens"] == whole.json["usage"]["completion_tokens"]
    told = [
        token
        for event in stream.events[:-2]
        for token in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert told == whole.json["choices"][0]["logprobs"]["content"]


def test_a_replayed_stream_has_the_deltas_of_the_live_one(server, question) -> None:
    asked = chat(question(), stream=True)
    live, replayed = server.post(asked), server.post(asked)
    assert replayed.headers["sluice-origin"] == "exact"

    def deltas(events):
        return [event["choices"] for event in events if event != "[DONE]"]

    assert deltas(replayed.events) == deltas(live.events)


def test_a_hit_of_several_prompts_is_a_hit_for_each(server, question) -> None:
    prompts = [question(), question()]
    asked = {"model": "small", "prompt": prompts, "max_tokens": 5}
    first = server.post({**asked, "prompt": prompts[0]}, COMPLETIONS)
    both = server.post(asked, COMPLETIONS)
    assert 0 < both.computed < first.computed + both.json["usage"]["total_tokens"]
    again = server.post(asked, COMPLETIONS)
    assert again.computed == 0
    assert again.json["choices"] == both.json["choices"]


def test_who_asks_and_how_does_not_make_it_another_request(server, question) -> None:
    text = question()
    server.post(chat(text))
    for same in (
        {"user": "ann"},
        {"metadata": {"trace": "1"}},
        {"n": 1},
        {"stop": None},
        {"logprobs": False},
        {"frequency_penalty": 0},
        {"messages": [{"content": [{"type": "text", "text": text}], "role": "user"}]},
    ):
        assert server.post(chat(text, **same)).computed == 0, same


OTHERS = {
    "model": "large",
    "max_tokens": 11,
    "temperature": 0,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 7,
    "stop": ["x"],
    "n": 2,
    "logprobs": True,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.2,
    "logit_bias": {"40": 1},
    "chat_template_kwargs": {"enable_thinking": False},
    "parallel_tool_calls": False,
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_parameter_is_another_request(server, question, name) -> None:
    text = question()
    server.post(chat(text))
    other = server.post(chat(text, **{name: OTHERS[name]}))
    assert other.status == 200
    assert other.headers["sluice-origin"] != "exact"
    assert other.computed > 0


def test_another_message_is_another_request(server, question) -> None:
    text = question()
    server.post(chat(text))
    for messages in (
        [{"role": "user", "content": text + " "}],
        [{"role": "system", "content": text}],
        [{"role": "user", "content": text, "name": "ann"}],
        [{"role": "user", "content": ""}, {"role": "user", "content": text}],
    ):
        assert server.post(chat("", messages=messages)).headers["sluice-origin"] == "small"


# --------------------------------------------------------------------------- what is not cached


@pytest.mark.parametrize("sampled", [{"temperature": 0.8}, {"top_p": 0.9}, {"n": 2}])
def test_a_request_for_chance_is_answered_anew(server, question, sampled) -> None:
    asked = chat(question(), **sampled)
    for _ in range(2):
        reply = server.post(asked)
        assert reply.headers["cache-status"] == "exact; fwd=bypass"
        assert reply.computed > 0


def test_chance_with_a_seed_is_repeated(server, question) -> None:
    asked = chat(question(), temperature=1.5, seed=4)
    first, second = server.post(asked), server.post(asked)
    assert second.headers["sluice-origin"] == "exact"
    assert second.text == first.text


def test_an_error_is_not_stored(server, question) -> None:
    asked = chat(question(), max_tokens=1_000_000)
    for _ in range(2):
        assert server.post(asked).status == 400


def test_an_answer_that_was_cut_by_a_hang_up_is_not_stored(server, models, question) -> None:
    asked = models.long(question(), 1500, stream=True)
    with server.connect() as connection:
        connection.sendall(post_bytes(json.dumps(asked).encode()))
        wait_until(server.running, "the answer is being computed")
    server.wait_idle()
    reply = server.post(asked | {"stream": False}, cache_control="only-if-cached")
    assert reply.status == 504


# --------------------------------------------------------------------------- Cache-Control


def test_no_store_neither_reads_nor_writes(server, question) -> None:
    asked = chat(question())
    for _ in range(2):
        reply = server.post(asked, cache_control="no-store")
        assert reply.headers["cache-status"] == "exact; fwd=request"
        assert reply.computed > 0
    assert server.post(asked).headers["sluice-origin"] == "small"
    assert server.post(asked, cache_control="no-store").computed > 0


def test_no_cache_does_not_read_and_does_write(server, question) -> None:
    asked = chat(question())
    assert server.post(asked, cache_control="no-cache").computed > 0
    assert server.post(asked).headers["sluice-origin"] == "exact"
    assert server.post(asked, cache_control="no-cache").computed > 0


@pytest.mark.parametrize("stream", [False, True])
def test_only_if_cached_is_a_504_until_it_is_cached(server, question, stream) -> None:
    asked = chat(question(), stream=stream)
    missed = server.post(asked, cache_control="only-if-cached")
    assert missed.status == 504
    assert missed.error["code"] == "not_cached"
    server.post(asked)
    assert server.post(asked, cache_control="only-if-cached").status == 200


def test_max_age_takes_only_what_is_young_enough(server, question) -> None:
    asked = chat(question())
    server.post(asked)
    assert server.post(asked, cache_control="max-age=3600").headers["sluice-origin"] == "exact"
    old = server.post(asked, cache_control="max-age=0")
    assert old.headers["cache-status"] == "exact; fwd=request"
    assert old.computed > 0


def test_max_age_that_is_no_number_is_refused(server, question) -> None:
    reply = server.post(chat(question()), cache_control="max-age=soon")
    assert reply.status == 400
    assert "max-age" in reply.error["message"]


def test_two_lines_of_cache_control_are_both_heard(server, question) -> None:
    """RFC 9110: a field in several lines means the same as its values in one, comma-separated."""
    body = json.dumps(chat(question())).encode()
    lines = "cache-control: no-store\r\ncache-control: max-age=60\r\n"
    for _ in range(2):
        with server.connect() as connection:
            connection.sendall(post_bytes(body, headers=lines))
            assert read_reply(connection).computed > 0


# --------------------------------------------------------------------------- who shares


def test_tenants_do_not_share_answers(server, question) -> None:
    asked = chat(question())
    assert server.post(asked, **bearer(ALICE)).computed > 0
    assert server.post(asked, **bearer(ALICE)).computed == 0
    for other in (bearer(BOB), {}):
        reply = server.post(asked, **other)
        assert reply.headers["sluice-origin"] == "small"
        assert reply.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_users_of_a_tenant_that_keeps_them_apart_do_not_share(server, question) -> None:
    text = question()
    for user in ("ann", "ben"):
        assert server.post(chat(text, user=user), **bearer(SHARED)).computed > 0
        assert server.post(chat(text, user=user), **bearer(SHARED)).computed == 0
    for _ in range(2):
        assert server.post(chat(text), **bearer(SHARED)).computed > 0


def test_a_caller_cannot_choose_a_scope(server, question) -> None:
    asked = chat(question())
    server.post(asked, **bearer(ALICE))
    for name, value in (("scope", "tenant:alice"), ("policy", "x"), ("fingerprint", "x")):
        reply = server.post({**asked, name: value}, **bearer(BOB))
        assert reply.status == 400
        assert reply.error["param"] == name


def test_a_shared_prefix_is_not_computed_again(server, question) -> None:
    """The prefix tree, below the caches: another question behind the same long system prompt."""
    system = {"role": "system", "content": question() + " Be patient and kind." * 8}

    def ask(text: str):
        return server.post(chat("", messages=[system, {"role": "user", "content": text}]))

    first, second = ask("one"), ask("two")
    assert first.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second.json["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
    assert second.computed < first.computed


# --------------------------------------------------------------------------- the join


@pytest.mark.parametrize("stream", [False, True])
def test_identical_requests_at_the_same_time_are_computed_once(
    server, models, question, stream
) -> None:
    asked = models.long(question(), 300, stream=stream)
    if stream:
        asked["stream_options"] = {"include_usage": True}
    with ThreadPoolExecutor(16) as pool:
        replies = [f.result() for f in [pool.submit(server.post, asked) for _ in range(16)]]
    origins = sorted(reply.headers["sluice-origin"] for reply in replies)
    assert origins.count("small") == 1
    assert "joined" in origins
    assert set(origins) <= {"small", "joined", "exact"}
    if stream:
        texts = {reply.streamed_text for reply in replies}
        computed = [reply.events[-2]["usage"]["sluice"]["computed_tokens"] for reply in replies]
    else:
        texts = {reply.text for reply in replies}
        computed = [reply.computed for reply in replies]
    assert len(texts) == 1
    assert sum(tokens > 0 for tokens in computed) == 1
    joined = next(r for r in replies if r.headers["sluice-origin"] == "joined")
    assert joined.headers["cache-status"] == "exact; fwd=miss; collapsed"


def test_a_stream_and_a_whole_answer_join_each_other(server, models, question) -> None:
    asked = models.long(question(), 500)
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(server.post, asked)
        wait_until(server.running, "the first is being computed")
        stream = pool.submit(server.post, {**asked, "stream": True})
        assert stream.result().streamed_text == whole.result().text
    assert stream.result().headers["sluice-origin"] == "joined"


@pytest.mark.parametrize("header", ["no-store", "no-cache"])
def test_who_wants_it_fresh_does_not_join(server, models, question, header) -> None:
    asked = models.long(question(), 100)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.post, asked, cache_control=header) for _ in range(3)]
        replies = [one.result() for one in waiting]
    assert [reply.headers["sluice-origin"] for reply in replies] == ["small"] * 3


def test_samples_asked_for_by_chance_are_not_collapsed(server, models, question) -> None:
    asked = models.long(question(), 40, temperature=2)
    with ThreadPoolExecutor(4) as pool:
        replies = [f.result() for f in [pool.submit(server.post, asked) for _ in range(4)]]
    assert len({reply.text for reply in replies}) > 1


# --------------------------------------------------------------------------- through an SDK


def test_an_sdk_sees_the_hit_in_usage_and_headers(server, question) -> None:
    asked = {"model": "large", "messages": [{"role": "user", "content": question()}]}
    with OpenAI(base_url=f"{server.base_url}/v1", api_key=ALICE, max_retries=0) as client:
        first = client.chat.completions.create(max_tokens=9, **asked)
        raw = client.chat.completions.with_raw_response.create(max_tokens=9, **asked)
    hit = raw.parse()
    assert raw.headers["sluice-origin"] == "exact"
    assert hit.usage.model_extra["sluice"]["computed_tokens"] == 0
    assert hit.choices[0].message.content == first.choices[0].message.content
