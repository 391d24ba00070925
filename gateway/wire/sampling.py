"""The request fields that chat and text completions share, and what they mean in a Call.

Ranges stand in the types, so that the decoder enforces them while it reads. `ROLES` says of every
field whether it is part of "the same request" (the cache key) or not, and why: a test fails when a
field is added to a request and not decided here, which is how gateways come to serve one request's
answer to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engine.contract import BadCall, Sampling

KEY = "key"

MAX_STOPS = 4
MOST_TOKEN = 2**31 - 1

Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Repetition = Annotated[float, Meta(gt=0.0, le=10.0)]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Choices = Annotated[int, Meta(ge=1, le=128)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """What both surfaces take. null is the same as leaving a field out, as in OpenAI's API."""

    model: Annotated[str, Meta(min_length=1)]
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: Seed | None = None
    n: Choices | None = None
    max_tokens: Tokens | None = None
    stop: StopText | list[StopText] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


ROLES: Mapping[str, str] = MappingProxyType(
    {
        "model": KEY,
        "temperature": KEY,
        "top_p": KEY,
        "top_k": KEY,
        "min_p": KEY,
        "frequency_penalty": KEY,
        "presence_penalty": KEY,
        "repetition_penalty": KEY,
        "logit_bias": KEY,
        "seed": KEY,
        "n": KEY,
        "max_tokens": KEY,
        "stop": KEY,
        "stream": "how the answer travels; one entry serves both",
        "stream_options": "how the answer travels; usage is kept with every answer",
        "user": "who asks; becomes part of the scope where cache_scope = user",
        "metadata": "the caller's own notes; no model sees them",
    }
)
"""Field → KEY, or the reason why it is not part of the key."""


def sampling_of(request: Common) -> Sampling:
    """The numbers that choose tokens. None stays None: "the caller did not say". A `top_k` of 0 or
    -1 says "off"."""
    if request.top_p == 0.0:
        raise BadCall("top_p: expected a number above 0; for greedy decoding set temperature to 0.",
                      param="top_p", code="invalid_value")  # fmt: skip
    return Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=None if request.top_k is None else max(0, request.top_k),
        min_p=request.min_p,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        repetition_penalty=request.repetition_penalty,
        logit_bias=_biases(request.logit_bias) if request.logit_bias else (),
        seed=request.seed,
    )


def stops_of(request: Common) -> tuple[str, ...]:
    if request.stop is None:
        return ()
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    if len(stops) > MAX_STOPS:
        raise BadCall(f"stop: at most {MAX_STOPS} sequences are allowed; got {len(stops)}.",
                      param="stop", code="invalid_value")  # fmt: skip
    return stops


def check_stream(request: Common) -> None:
    if request.stream_options is not None and not request.stream:
        raise BadCall("stream_options is only allowed when stream is true; leave it out.",
                      param="stream_options", code="invalid_value")  # fmt: skip


def _biases(raw: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Sorted by token id, so that order in the request does not matter."""
    try:
        pairs = sorted((int(token), bias) for token, bias in raw.items())
    except ValueError:
        raise BadCall("logit_bias: keys must be token ids, as {\"1234\": -100}.",
                      param="logit_bias", code="invalid_value") from None  # fmt: skip
    if pairs[0][0] < 0 or pairs[-1][0] > MOST_TOKEN:
        raise BadCall(f"logit_bias: keys must be token ids, 0 to {MOST_TOKEN}.",
                      param="logit_bias", code="invalid_value")  # fmt: skip
    return tuple(pairs)
