from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.contract import BadCall, Call, Sampling, Trail
from engine.lane import Lane
from engine.mailbox import Mailbox
from engine.request import Request, check, make_request, seed_of
from engine.sequence import SamplingParams
from tests.support.engines import canonical, chat, fake_lane


def text(**fields: object) -> Call:
    return Call(kind="text", model="small", scope="s", **fields)  # type: ignore[arg-type]


async def make(call: Call, lane: Lane, num_prompt: int = 10) -> Request:
    return make_request(
        call,
        Trail("r1", tenant="t", share=2.0, deadline=9.0),
        lane,
        np.arange(num_prompt, dtype=np.int32),
        mailbox=Mailbox(),
        arrival=1.0,
        first_id=7,
        seed=99,
    )


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (chat(extra=canonical({"frobnicate": 1})), "frobnicate"),
        (chat(tools=canonical([{"type": "function"}])), "tools"),
        (chat(tool_choice=canonical("required")), "tool_choice"),
        (chat(response_format=canonical({"type": "json_object"})), "response_format"),
        (text(prompt="x", chat_template_kwargs=canonical({})), "chat_template_kwargs"),
        (chat(messages=()), "messages"),
        (chat(n=0), "n"),
        (chat(n=129), "n"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(top_logprobs=21), "top_logprobs"),
        (chat(top_logprobs=-1), "top_logprobs"),
        (chat(sampling=Sampling(logit_bias=((384, 1.0),))), "logit_bias"),
        (chat(sampling=Sampling(logit_bias=((-1, 1.0),))), "logit_bias"),
        (text(prompt=(1, 2, 384)), "prompt"),
        (text(prompt=(1, 2**40)), "prompt"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(call: Call, param: str) -> None:
    with pytest.raises(BadCall) as caught:
        check(call, fake_lane())
    assert caught.value.param == param


@pytest.mark.parametrize(
    "call",
    [
        chat(extra=canonical({})),
        chat(tools=canonical([])),
        chat(tool_choice=canonical("none")),
        chat(response_format=canonical({"type": "text"})),
        chat(chat_template_kwargs=canonical({"enable_thinking": False})),
        chat(n=128, max_tokens=1, top_logprobs=20),
        text(prompt=(0, 383)),
    ],
)
def test_what_asks_for_nothing_special_is_accepted(call: Call) -> None:
    check(call, fake_lane())


async def test_a_prompt_that_fills_the_context_is_refused_with_the_numbers() -> None:
    lane = fake_lane(context=32)
    with pytest.raises(BadCall, match=r"32 tokens.*has 40.*at least 9") as caught:
        await make(chat(), lane, num_prompt=40)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_prompt_and_answer_together_must_fit_the_context() -> None:
    lane = fake_lane(context=32)
    assert (await make(chat(max_tokens=22), lane)).sequences[0].max_known == 32
    with pytest.raises(BadCall, match=r"at most 22") as caught:
        await make(chat(max_tokens=23), lane)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")


async def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(BadCall, match="empty") as caught:
        await make(text(prompt=""), fake_lane(), num_prompt=0)
    assert caught.value.param == "prompt"


async def test_without_max_tokens_context_and_memory_are_the_limit() -> None:
    assert (await make(chat(), fake_lane(context=100))).sequences[0].max_known == 100
    lane = fake_lane(context=512, num_pages=8, page_size=4)
    assert (await make(chat(), lane)).sequences[0].max_known == 33


async def test_what_the_call_leaves_open_is_the_models_own() -> None:
    own = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, min_p=0.1, repetition_penalty=1.05)
    lane = dataclasses.replace(fake_lane(), defaults=own)
    params = (await make(chat(), lane)).sequences[0].params
    assert params == dataclasses.replace(own, seed=99)
    said = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=2.0, seed=3)
    params = (await make(chat(sampling=said), lane)).sequences[0].params
    assert params == SamplingParams(repetition_penalty=2.0, seed=3)
    off = Sampling(top_k=0, repetition_penalty=1.0, seed=3)
    params = (await make(chat(sampling=off), lane)).sequences[0].params
    assert (params.top_k, params.repetition_penalty) == (0, 1.0)


async def test_every_choice_has_its_own_seed_and_the_first_has_the_calls() -> None:
    request = await make(chat(n=3, sampling=Sampling(seed=5)), fake_lane())
    seeds = [s.params.seed for s in request.sequences]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert seeds == [seed_of(5, index) for index in range(3)]
    assert [s.id for s in request.sequences] == [7, 8, 9]


def test_any_integer_is_a_seed_of_63_bits() -> None:
    for seed in (-1, 0, 2**63, 2**200):
        assert all(0 <= seed_of(seed, index) < 2**63 for index in (0, 1))


async def test_logprobs_are_computed_only_where_asked_for() -> None:
    lane = fake_lane()
    assert (await make(chat(top_logprobs=3), lane)).sequences[0].params.logprobs == -1
    asked = chat(logprobs=True, top_logprobs=3)
    assert (await make(asked, lane)).sequences[0].params.logprobs == 3


async def test_a_sequence_knows_whose_it_is() -> None:
    sequence = (await make(chat(scope="acme"), fake_lane())).sequences[0]
    assert (sequence.namespace, sequence.tenant, sequence.share) == ("acme", "t", 2.0)
    assert (sequence.deadline, sequence.arrival) == (9.0, 1.0)


def test_a_prompt_that_cannot_fit_by_far_is_refused_before_it_is_tokenised() -> None:
    lane = fake_lane()
    for call in (chat("a" * 1_000_000), text(prompt="a" * 1_000_000)):
        with pytest.raises(BadCall, match="1000000 characters") as caught:
            check(call, lane)
        assert caught.value.code == "context_length_exceeded"


def test_a_prompt_that_may_fit_if_its_tokens_are_long_is_left_to_the_tokenizer() -> None:
    lane = fake_lane()
    check(chat("a" * lane.text.longest_token * lane.context), lane)


async def test_the_choices_of_a_call_share_one_bias() -> None:
    call = chat(n=3, sampling=Sampling(logit_bias=((5, 1.0), (6, -2.0))))
    request = await make(call, fake_lane())
    first, *others = [s.params.logit_bias for s in request.sequences]
    assert first is not None
    assert all(other is first for other in others)
    assert (first.ids.tolist(), first.values.tolist()) == ([5, 6], [1.0, -2.0])
    assert (await make(chat(), fake_lane())).sequences[0].params.logit_bias is None
