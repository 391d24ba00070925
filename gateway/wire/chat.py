"""POST /v1/chat/completions: the request's shape, and what of it becomes the Call.

Every field of OpenAI's request is decided here: honoured (in the Call), not part of what is asked
(`ROLES` says why), or refused by name. Anything else is `extra`: kept, keyed, and refused by a
model that cannot honour it (gateway/catalog.py), because a parameter that is silently dropped is
an answer to another question.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engine.contract import BadCall, Call, Json, Message, Part, ToolCall
from gateway.catalog import Place
from gateway.wire.parse import Decoder, canonical
from gateway.wire.sampling import KEY, Common, check_stream, sampling_of, stops_of
from gateway.wire.sampling import ROLES as COMMON_ROLES


class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True):
    refusal: str


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str


class RequestToolCall(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"
    index: int | None = None


class RequestMessage(msgspec.Struct, forbid_unknown_fields=True):
    """One message. The last five fields are what servers put into answers and clients send back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    tool_calls: list[RequestToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class FunctionSpec(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class NamedTool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(msgspec.Struct, rename={"schema_": "schema"}, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Common, kw_only=True):
    messages: Annotated[list[RequestMessage], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


ROLES: Mapping[str, str] = MappingProxyType(
    {
        **COMMON_ROLES,
        "messages": KEY,
        "max_completion_tokens": KEY,
        "logprobs": KEY,
        "top_logprobs": KEY,
        "tools": KEY,
        "tool_choice": KEY,
        "parallel_tool_calls": KEY,
        "response_format": KEY,
        "chat_template_kwargs": KEY,
        "modalities": "only ['text'] is accepted, which is the default",
        "store": "only false is accepted, which is the default",
        "service_tier": "only auto and default are accepted, and they are the same here",
        "safety_identifier": "who asks, like user",
        "prompt_cache_key": "a hint for finding prefixes; the prefix tree finds them by itself",
        "prompt_cache_retention": "a hint for keeping prefixes; the answer is the same",
    }
)


def new_decoder() -> Decoder[ChatRequest]:
    return Decoder(ChatRequest)


def max_tokens_of(request: ChatRequest) -> int | None:
    both = (request.max_completion_tokens, request.max_tokens)
    if None not in both and both[0] != both[1]:
        raise BadCall("max_tokens and max_completion_tokens disagree; send one of them.",
                      param="max_tokens")  # fmt: skip
    return both[0] or both[1]


def call_of(request: ChatRequest, extra: Json | None, place: Place) -> Call:
    """What is asked, where it is answered."""
    _refuse(request)
    return Call(
        kind="chat",
        model=place.model,
        scope=place.scope,
        fingerprint=place.fingerprint,
        policy=place.policy,
        messages=tuple([_message(message, i) for i, message in enumerate(request.messages)]),
        sampling=sampling_of(request),
        n=request.n or 1,
        max_tokens=place.max_tokens,
        longest=place.longest,
        stop=stops_of(request),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        tools=_canonical_tools(request),
        tool_choice=_canonical_choice(request),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        response_format=_canonical_format(request),
        chat_template_kwargs=(
            canonical(request.chat_template_kwargs, "chat_template_kwargs")
            if request.chat_template_kwargs
            else None
        ),
        extra=extra,
    )


def _refuse(request: ChatRequest) -> None:
    """What the shape allows and this server does not."""
    check_stream(request)
    if request.top_logprobs and not request.logprobs:
        raise BadCall("top_logprobs needs logprobs to be true.", param="top_logprobs")
    if request.store:
        raise BadCall("store: answers are not kept for retrieval here; leave store out.",
                      param="store", code="unsupported_parameter")  # fmt: skip
    if request.modalities and request.modalities != ["text"]:
        raise BadCall('modalities: these models answer in text only; send ["text"].',
                      param="modalities", code="unsupported_modality")  # fmt: skip


def _message(raw: RequestMessage, index: int) -> Message:
    if isinstance(raw.content, str):
        parts: tuple[Part, ...] = (Part("text", raw.content),)
    else:
        parts = _parts(raw, index)
    if raw.reasoning_content:
        parts = (Part("reasoning", raw.reasoning_content), *parts)
    calls = tuple(map(_tool_call, raw.tool_calls)) if raw.tool_calls else ()
    if raw.role == "tool" and not raw.tool_call_id:
        raise BadCall(f"messages[{index}].tool_call_id is missing; name the call answered.",
                      param=f"messages[{index}].tool_call_id")  # fmt: skip
    return Message(raw.role, parts, raw.name, calls, raw.tool_call_id)


def _tool_call(raw: RequestToolCall) -> ToolCall:
    return ToolCall(raw.id, raw.function.name, raw.function.arguments)


def _parts(raw: RequestMessage, index: int) -> tuple[Part, ...]:
    """The parts of a message whose content is not plain text. A refusal is what was said."""
    pieces = raw.content or ()
    parts = tuple(
        Part("text", piece.text if isinstance(piece, TextPart) else piece.refusal)
        for piece in pieces
        if not isinstance(piece, str)
    )
    if parts or (raw.role == "assistant" and raw.tool_calls):
        return parts
    if raw.role == "assistant" and raw.refusal:
        return (Part("text", raw.refusal),)
    raise BadCall(f"messages[{index}].content is missing; send a string or a list of text parts.",
                  param=f"messages[{index}].content")  # fmt: skip


def _canonical_tools(request: ChatRequest) -> Json | None:
    return canonical(msgspec.to_builtins(request.tools), "tools") if request.tools else None


def _canonical_choice(request: ChatRequest) -> Json | None:
    if request.tool_choice is None:
        return None
    choice = msgspec.to_builtins(request.tool_choice)
    if not request.tools and choice not in ("none", "auto"):
        raise BadCall("tool_choice needs tools; send both or neither.", param="tool_choice")
    return canonical(choice, "tool_choice")


def _canonical_format(request: ChatRequest) -> Json | None:
    asked = request.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_schema" and (asked.json_schema is None or not asked.json_schema.schema_):
        raise BadCall("response_format.json_schema.schema is missing; send the schema to follow.",
                      param="response_format.json_schema")  # fmt: skip
    return canonical(msgspec.to_builtins(asked), "response_format")
