"""OpenAI's own SDK against the real server, as its users write it."""

from __future__ import annotations

import asyncio
import math
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.support.program import Program, wait_until
from tests.support.served import ALICE, BOB, LIMITED, MAX_BODY_BYTES, Models

FRESH = {"Cache-Control": "no-store"}
"""Computed each time: neither read from the cache, nor put there."""


@pytest.fixture
async def async_client(server: Program) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key=BOB, max_retries=0) as one:
        yield one


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_the_snippet_of_the_greeting_works_as_it_is(server, capsys) -> None:
    _, _, after = server.logged().partition("  from openai")
    snippet = textwrap.dedent("  from openai" + after.partition("\n\n")[0])
    names: dict[str, Any] = {}
    exec(snippet.replace("YOUR-KEY", ALICE), names)
    names["client"].close()
    assert capsys.readouterr().out == names["answer"].choices[0].message.content + "\n"


# --------------------------------------------------------------------------- chat


@pytest.mark.parametrize("model", ["small", "large"])
def test_a_chat_is_answered_by_the_model_that_was_asked(client, question, model) -> None:
    answer = client.chat.completions.create(model=model, messages=user(question()), max_tokens=8)
    assert answer.object == "chat.completion"
    assert answer.model == model
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    assert choice.finish_reason in {"stop", "length"}
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 8


def test_auto_and_an_alias_are_answered(client, question) -> None:
    for model in ("auto", "gpt-4o"):
        answer = client.chat.completions.create(
            model=model, messages=user(question()), max_completion_tokens=4
        )
        assert answer.model in {"small", "large"}


def test_a_conversation_with_every_role_and_parts_is_answered(client, question) -> None:
    answer = client.chat.completions.create(
        model="small",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": question()}]},
            {"role": "assistant", "content": "Which one?"},
            {"role": "user", "content": "The second.", "name": "ann"},
        ],
        max_tokens=4,
    )
    assert answer.usage.completion_tokens > 0


@pytest.mark.parametrize("model", ["small", "large"])
def test_a_stream_says_what_the_whole_answer_says(client, question, model) -> None:
    asked = {
        "model": model,
        "messages": user(question()),
        "max_tokens": 24,
        "extra_headers": FRESH,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(stream=True, **asked))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {c.id for c in chunks} == {chunks[0].id}
    assert all(c.usage is None for c in chunks)


def test_a_stream_ends_with_usage_where_it_is_asked_for(client, question) -> None:
    asked = {"model": "small", "messages": user(question()), "max_tokens": 8}
    whole = client.chat.completions.create(extra_headers=FRESH, **asked)
    *chunks, last = client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, extra_headers=FRESH, **asked
    )
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(c.usage is None for c in chunks)


def test_the_sdks_stream_helper_puts_the_answer_together(client, question) -> None:
    asked = {"model": "small", "messages": user(question()), "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        *_, done = [event for event in stream if event.type == "content.done"]
        # The SDK's own get_final_completion() raises when an answer ended at max_tokens.
        snapshot = stream.current_completion_snapshot
    assert done.content == whole.choices[0].message.content
    assert snapshot.choices[0].message.content == whole.choices[0].message.content


def test_n_greedy_choices_are_the_same_and_sampled_ones_are_not(client, question) -> None:
    asked = {"model": "small", "messages": user(question()), "max_tokens": 16, "n": 4}
    greedy = client.chat.completions.create(temperature=0, **asked)
    assert [c.index for c in greedy.choices] == [0, 1, 2, 3]
    assert len({c.message.content for c in greedy.choices}) == 1
    sampled = client.chat.completions.create(temperature=2, seed=3, **asked)
    assert len({c.message.content for c in sampled.choices}) > 1
    assert sampled.usage.prompt_tokens == greedy.usage.prompt_tokens


def test_n_choices_are_told_apart_in_a_stream(client, question) -> None:
    asked = {"model": "small", "messages": user(question()), "max_tokens": 12, "n": 3, "seed": 5}
    asked = {**asked, "temperature": 1.5, "extra_headers": FRESH}
    client.chat.completions.create(**asked)  # from now on all find the same prefix in the tree
    whole = client.chat.completions.create(**asked)
    texts, reasons = {0: "", 1: "", 2: ""}, {}
    for chunk in client.chat.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {c.index: c.message.content for c in whole.choices}
    assert reasons == {c.index: c.finish_reason for c in whole.choices}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_its_stop_string(client, question, models: Models, stream) -> None:
    asked = {
        "model": "small",
        "messages": user(question()),
        "max_tokens": 40,
        "logit_bias": models.never_stops(),
        "extra_headers": FRESH,
    }
    text = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole_characters(text)
    answer = client.chat.completions.create(stop=["never said", stop], stream=stream, **asked)
    if stream:
        *chunks, last = answer
        said = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = last.choices[0].finish_reason
    else:
        said, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert reason == "stop"
    assert said == text[: text.index(stop)]


def whole_characters(text: str) -> str:
    """Three characters from the later part of an answer that are characters, not broken ones."""
    for at in range(len(text) // 2, len(text) - 3):
        piece = text[at : at + 3]
        if "\ufffd" not in piece:
            return piece
    pytest.fail(f"no three whole characters in {text!r}")


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_tell_every_token_and_its_alternatives(client, question, models, stream) -> None:
    asked = {"model": "small", "messages": user(question()), "max_tokens": 10}
    asked = {**asked, "logit_bias": models.never_stops(), "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(stream=stream, **asked)
    if stream:
        chunks = [c.choices[0] for c in answer]
        text = "".join(c.delta.content or "" for c in chunks)
        tokens = [t for c in chunks if c.logprobs for t in c.logprobs.content]
    else:
        text = answer.choices[0].message.content
        tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 10
    assert b"".join(bytes(t.bytes) for t in tokens).decode("utf-8", "replace") == text
    for token in tokens:
        ranked = [other.logprob for other in token.top_logprobs]
        assert len(ranked) == 3
        assert ranked == sorted(ranked, reverse=True)
        assert token.logprob <= 0
        assert sum(map(math.exp, ranked)) <= 1.0001


def test_a_seed_repeats_a_sample_and_another_seed_does_not(client, question) -> None:
    asked = {"model": "small", "messages": user(question()), "max_tokens": 24, "temperature": 1.8}

    def sample(seed: int) -> str:
        answer = client.chat.completions.create(seed=seed, extra_headers=FRESH, **asked)
        return answer.choices[0].message.content

    sample(1)  # from now on all find the same prefix in the tree
    assert sample(11) == sample(11)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_one_token_is_one_token(client, question, models) -> None:
    answer = client.chat.completions.create(
        model="large",
        messages=user(question()),
        max_tokens=1,
        logit_bias=models.never_stops(),
    )
    assert answer.usage.completion_tokens == 1
    assert answer.choices[0].finish_reason == "length"


def test_who_asked_and_when_is_in_the_answers_head(client, question) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="large",
        messages=user(question()),
        max_tokens=2,
        extra_headers={"x-request-id": "mine-1"},
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["sluice-model"] == raw.headers["sluice-origin"] == "large"
    assert raw.headers["cache-status"] == "exact; fwd=miss"
    assert "prefill;dur=" in raw.headers["server-timing"]


# --------------------------------------------------------------------------- completions, models


def test_a_text_is_continued(client, question) -> None:
    prompt = question()
    asked = {"model": "small", "prompt": prompt, "max_tokens": 8, "extra_headers": FRESH}
    whole = client.completions.create(logprobs=2, **asked)
    assert whole.object == "text_completion"
    text = whole.choices[0].text
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens
    streamed = "".join(c.choices[0].text for c in client.completions.create(stream=True, **asked))
    assert streamed == text


def test_several_prompts_are_several_choices_in_order(client, question) -> None:
    prompts = [question(), question()]
    both = client.completions.create(model="small", prompt=prompts, max_tokens=6)
    assert [c.index for c in both.choices] == [0, 1]
    for prompt, choice in zip(prompts, both.choices, strict=True):
        alone = client.completions.create(model="small", prompt=prompt, max_tokens=6)
        assert alone.choices[0].text == choice.text


def test_a_prompt_of_token_ids_is_continued(client) -> None:
    answer = client.completions.create(model="small", prompt=[40, 41, 42, 43], max_tokens=4)
    assert answer.usage.prompt_tokens == 4


def test_models_are_listed_and_looked_up(client) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["auto", "small", "large"]
    assert client.models.retrieve("large").id == "large"
    with pytest.raises(openai.NotFoundError, match="small"):
        client.models.retrieve("huge")


# --------------------------------------------------------------------------- errors


def test_a_bad_parameter_is_a_bad_request_that_names_it(client, question) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as raised:
        client.chat.completions.create(model="small", messages=user(question()), temperature=9)
    assert raised.value.param == "temperature"
    assert raised.value.type == "invalid_request_error"


def test_an_unknown_model_is_not_found(client, question) -> None:
    with pytest.raises(openai.NotFoundError, match="Models here") as raised:
        client.chat.completions.create(model="gpt-17", messages=user(question()))
    assert raised.value.code == "model_not_found"


def test_a_stream_that_cannot_begin_fails_as_an_exception(client, question) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(
            model="small", messages=user("word " * 5000), max_tokens=4, stream=True
        )


def test_a_wrong_key_is_an_authentication_error(client, question) -> None:
    with pytest.raises(openai.AuthenticationError, match="not known"):
        client.with_options(api_key="sk-nobody").chat.completions.create(
            model="small", messages=user(question())
        )


def test_a_model_that_the_key_may_not_use_is_denied(client, question) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="small"):
        client.with_options(api_key=BOB).chat.completions.create(
            model="large", messages=user(question())
        )


def test_too_many_requests_are_told_when_to_come_back(client, question) -> None:
    limited = client.with_options(api_key=LIMITED)
    limited.chat.completions.create(model="small", messages=user(question()), max_tokens=2)
    with pytest.raises(openai.RateLimitError) as raised:
        limited.chat.completions.create(model="small", messages=user(question()), max_tokens=2)
    assert int(raised.value.response.headers["retry-after"]) > 0


def test_a_request_that_is_too_large_is_refused(client) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(model="small", messages=user("x" * (MAX_BODY_BYTES + 1)))
    assert raised.value.status_code == 413


def test_a_client_that_loses_patience_frees_the_engine(client, server, question, models) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(**models.long(question(), 1500))
    server.wait_idle()


def test_a_client_that_closes_its_stream_frees_the_engine(client, server, question, models) -> None:
    stream = client.chat.completions.create(stream=True, **models.long(question(), 1500))
    next(stream)
    wait_until(server.running, "the answer is being computed")
    stream.close()
    server.wait_idle()


# --------------------------------------------------------------------------- async


async def test_many_streams_at_once_say_what_each_says_alone(async_client, question) -> None:
    """Twice as many as the engine runs at one time."""
    texts = [question() for _ in range(16)]

    async def say(text: str) -> str:
        stream = await async_client.chat.completions.create(
            model="small", messages=user(text), max_tokens=10, stream=True, extra_headers=FRESH
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    together = await asyncio.gather(*map(say, texts))
    assert together == [await say(text) for text in texts]


async def test_leaving_an_async_stream_frees_the_engine(
    async_client, server, question, models
) -> None:
    stream = await async_client.chat.completions.create(
        stream=True, **models.long(question(), 1500)
    )
    async with stream:
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    await asyncio.to_thread(server.wait_idle)


async def test_a_cancelled_task_frees_the_engine(async_client, server, question, models) -> None:
    asked = models.long(question(), 1500)
    task = asyncio.create_task(async_client.chat.completions.create(**asked))
    while not await asyncio.to_thread(server.running):
        assert not task.done(), "it has time to be cancelled"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(server.wait_idle)


async def test_both_models_answer_at_the_same_time(server, question) -> None:
    async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key=ALICE, max_retries=0) as one:

        async def say(model: str, text: str) -> str:
            answer = await one.chat.completions.create(
                model=model, messages=user(text), max_tokens=12, extra_headers=FRESH
            )
            assert answer.model == model
            return answer.choices[0].message.content or ""

        asked = [(model, question()) for _ in range(6) for model in ("small", "large")]
        together = await asyncio.gather(*(say(*one) for one in asked))
        assert together == [await say(*one) for one in asked]
