"""POST /v1/completions: the request's shape, and the Calls that it becomes.

A list of prompts is that many questions: each is a Call of its own, so that each can be a hit, and
choice indices follow OpenAI's order (all choices of the first prompt, then of the second).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, cast

from msgspec import Meta

from engine.contract import BadCall, Call, Json
from gateway.catalog import Place
from gateway.wire.parse import Decoder
from gateway.wire.sampling import KEY, Common, check_stream, sampling_of, stops_of
from gateway.wire.sampling import ROLES as COMMON_ROLES

MAX_PROMPTS = 64
DEFAULT_MAX_TOKENS = 16
"""OpenAI's own default for this surface."""

Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class CompletionRequest(Common, kw_only=True):
    prompt: str | list[str | Token | list[Token]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


ROLES: Mapping[str, str] = MappingProxyType(
    {
        **COMMON_ROLES,
        "prompt": KEY,
        "logprobs": KEY,
        "echo": "only false is accepted, which is the default",
        "suffix": "refused",
        "best_of": "only n is accepted, which means the same as leaving it out",
    }
)


def new_decoder() -> Decoder[CompletionRequest]:
    return Decoder(CompletionRequest)


def max_tokens_of(request: CompletionRequest) -> int:
    return request.max_tokens or DEFAULT_MAX_TOKENS


def calls_of(request: CompletionRequest, extra: Json | None, place: Place) -> tuple[Call, ...]:
    """One Call per prompt, in order."""
    _refuse(request)
    sampling = sampling_of(request)
    stops = stops_of(request)
    return tuple(
        Call(
            kind="text",
            model=place.model,
            scope=place.scope,
            fingerprint=place.fingerprint,
            policy=place.policy,
            prompt=prompt,
            sampling=sampling,
            n=request.n or 1,
            max_tokens=place.max_tokens,
            stop=stops,
            logprobs=request.logprobs is not None,
            top_logprobs=request.logprobs or 0,
            extra=extra,
        )
        for prompt in _prompts(request.prompt)
    )


def _refuse(request: CompletionRequest) -> None:
    check_stream(request)
    n = request.n or 1
    unsupported = {
        "echo": request.echo,
        "suffix": request.suffix,
        "best_of": request.best_of is not None and request.best_of != n,
    }
    for name, asked in unsupported.items():
        if asked:
            raise BadCall(f"{name} is not supported; leave it out.", param=name,
                          code="unsupported_parameter")  # fmt: skip


def _prompts(raw: str | list[str | int | list[int]]) -> list[str | tuple[int, ...]]:
    """A text, token ids, or a list of either: always a list of prompts."""
    if isinstance(raw, str):
        return [raw]
    if not raw:
        raise BadCall("prompt is empty; send a string, token ids, or a list of either.",
                      param="prompt")  # fmt: skip
    if set(map(type, raw)) == {int}:
        return [tuple(cast("list[int]", raw))]
    if len(raw) > MAX_PROMPTS:
        raise BadCall(f"prompt: at most {MAX_PROMPTS} prompts a request; got {len(raw)}.",
                      param="prompt")  # fmt: skip
    prompts: list[str | tuple[int, ...]] = []
    for index, piece in enumerate(raw):
        if isinstance(piece, int) or (not piece and not isinstance(piece, str)):
            raise BadCall(f"prompt[{index}]: mix neither texts and token ids, nor empty lists.",
                          param=f"prompt[{index}]")  # fmt: skip
        prompts.append(piece if isinstance(piece, str) else tuple(piece))
    return prompts
