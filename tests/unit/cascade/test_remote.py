"""What of a remote model needs no server."""

from __future__ import annotations

import json
import random

import httpx
import pytest

from cascade.address import Addresses
from cascade.guard import Backoff, Breaker
from cascade.remote import Remote, SecretMissing, Upstream, secret
from engine.contract import End, Event, Trail, UpstreamFailed, Usage
from tests.support.routing import chat


def test_a_secret_comes_from_the_environment_that_is_given() -> None:
    assert secret("OUR_KEY", {"OUR_KEY": " sk-1\n"}) == "sk-1"


@pytest.mark.parametrize("environ", [{}, {"OUR_KEY": ""}, {"OUR_KEY": "  "}])
def test_a_missing_secret_names_its_variable(environ: dict[str, str]) -> None:
    with pytest.raises(SecretMissing, match="OUR_KEY is not set"):
        secret("OUR_KEY", environ)


# ------------------------------------------------------------------ what servers send


def chunk(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def said(text: str, **more: object) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": text}, **more}])


STOP = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])


async def answer_to(*chunks: bytes) -> list[Event]:
    """What a server that sends these is understood as."""
    body = b"".join([*chunks, b"data: [DONE]\n\n"])
    remote = Remote(
        Upstream("theirs", "m"),
        Addresses("http://127.0.0.1:9/v1", allow_private=True),
        httpx.MockTransport(lambda _request: httpx.Response(200, content=body)),
        breaker=Breaker(lambda: 0.0),
        backoff=Backoff(random.Random(0), attempts=1),
    )
    return [event async for event in remote(chat("Hello."), Trail("r1"))]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (said("b", logprobs={"content": [{"token": "b", "logprob": None}]}), "log-probabilities"),
        (said("b", logprobs={"content": ["b"]}), "log-probabilities"),
        (said("b", logprobs={"content": [{"bytes": [999], "logprob": -1}]}), "log-probabilities"),
        (chunk(choices=[{"index": 7, "delta": {"content": "b"}}]), "choice 7"),
        (chunk(choices=[{"index": -1, "delta": {"content": "b"}}]), "cannot be read"),
    ],
)
async def test_what_cannot_be_read_is_the_upstreams_failure(broken: bytes, told: str) -> None:
    with pytest.raises(UpstreamFailed, match=told):
        await answer_to(said("a"), broken, STOP)


async def test_a_last_chunk_without_choices_or_counts_does_not_spoil_an_answer() -> None:
    events = await answer_to(said("a"), STOP, chunk(choices=None, usage={"prompt_tokens": None}))
    assert isinstance(events[-1], End)
    assert events[-1].usage.prompt_tokens > 0, "by estimate"
    assert events[-1].usage.completion_tokens == 1


async def test_counts_below_zero_and_more_cached_than_there_is_are_not_believed() -> None:
    counts = {"prompt_tokens": 5, "completion_tokens": -9}
    details = {"prompt_tokens_details": {"cached_tokens": 99}}
    events = await answer_to(said("a"), STOP, chunk(choices=[], usage=counts | details))
    assert events[-1] == End(Usage(5, 0, 5, 0))
