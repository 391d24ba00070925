"""OpenAI's wire format as a client: a Call as a request's body, chunks as events.

Servers that call themselves compatible differ in what they leave out: usage, ids, the role chunk,
the [DONE] line. Everything optional is optional here, unknown fields are ignored, and what cannot
be read is the upstream's failure, never a crash. Nothing that the caller asked for is dropped on
the way: parameters that we do not know (Call.extra) are sent as they came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args

import msgspec
import orjson

from engine.contract import Call, Delta, Finish, FinishReason, Message, TokenLogprob, Usage

Body = dict[str, Any]


class FunctionPart(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolPart(msgspec.Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: FunctionPart | None = None


class Said(msgspec.Struct):
    """A chunk's `delta`, or a whole answer's `message`."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolPart] | None = None


class ChoicePart(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0)] = 0
    delta: Said | None = None
    message: Said | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class UsagePart(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Chunk(msgspec.Struct):
    id: str | None = None
    created: int | None = None
    choices: list[ChoicePart] | None = None
    usage: UsagePart | None = None
    error: Any = None


read_chunk = msgspec.json.Decoder(Chunk, strict=False).decode
"""Raises msgspec.DecodeError (ValidationError is one)."""

_REASONS = frozenset(get_args(FinishReason))


def request_body(call: Call, model: str, max_tokens_field: str = "max_tokens") -> bytes:
    """Always a stream: one path to read, and the first byte is known to have come."""
    body: Body = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if call.kind == "chat":
        body["messages"] = [_message(message) for message in call.messages]
        body |= _chat_fields(call)
    else:
        body["prompt"] = call.prompt if isinstance(call.prompt, str) else list(call.prompt)
        if call.logprobs:
            body["logprobs"] = call.top_logprobs
    body |= _sampling(call)
    if call.max_tokens is not None:
        body[max_tokens_field if call.kind == "chat" else "max_tokens"] = call.max_tokens
    if call.n != 1:
        body["n"] = call.n
    if call.stop:
        body["stop"] = list(call.stop)
    if call.extra is not None:
        body = {**orjson.loads(call.extra), **body}
    return orjson.dumps(body)


def _chat_fields(call: Call) -> Body:
    fields: Body = {}
    if call.logprobs:
        fields["logprobs"] = True
        if call.top_logprobs:
            fields["top_logprobs"] = call.top_logprobs
    if call.tools is not None:
        fields["tools"] = orjson.loads(call.tools)
        if not call.parallel_tool_calls:
            fields["parallel_tool_calls"] = False
    for name in ("tool_choice", "response_format", "chat_template_kwargs"):
        value = getattr(call, name)
        if value is not None:
            fields[name] = orjson.loads(value)
    return fields


def _sampling(call: Call) -> Body:
    """What the caller named, and nothing else: the server's own defaults apply to the rest."""
    sampling = call.sampling
    fields: Body = {
        name: getattr(sampling, name)
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        if getattr(sampling, name) is not None
    }
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(sampling, name) != 0.0:
            fields[name] = getattr(sampling, name)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return fields


def _message(message: Message) -> Body:
    body: Body = {"role": message.role}
    kinds = {part.kind for part in message.parts}
    if kinds <= {"text", "reasoning"}:
        text = message.text
        body["content"] = text if text or not message.tool_calls else None
    else:
        body["content"] = [_part(part.kind, part.body) for part in message.parts]
    if "reasoning" in kinds:
        thoughts = [part.body for part in message.parts if part.kind == "reasoning"]
        body["reasoning_content"] = "".join(thoughts)
    if message.name is not None:
        body["name"] = message.name
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        body["tool_calls"] = [
            {
                "id": tool.id,
                "type": "function",
                "function": {"name": tool.name, "arguments": tool.arguments},
            }
            for tool in message.tool_calls
        ]
    return body


def _part(kind: str, body: str) -> Body:
    """Another kind's body is the canonical JSON of the part, with or without its `type`."""
    if kind == "text":
        return {"type": "text", "text": body}
    part: Body = orjson.loads(body)
    return part if "type" in part else {"type": kind, kind: part}


def events_of(choice: ChoicePart) -> Iterator[Delta | Finish]:
    """A chunk's choice, or a whole answer's, as events in the order they were said."""
    logprobs = tuple(_logprobs(choice.logprobs)) if choice.logprobs else ()
    said = choice.delta or choice.message
    if said is not None:
        yield from _said(choice.index, said, logprobs)
    elif choice.text or logprobs:
        yield Delta(choice.index, "text", choice.text or "", (), logprobs)
    if choice.finish_reason:
        yield Finish(choice.index, _reason(choice.finish_reason))


def _said(index: int, said: Said, logprobs: tuple[TokenLogprob, ...]) -> Iterator[Delta]:
    thought = said.reasoning_content or said.reasoning
    if thought:
        yield Delta(index, "reasoning", thought)
    text = said.content or said.refusal
    if text or logprobs:
        yield Delta(index, "text", text or "", (), logprobs)
    for place, tool in enumerate(said.tool_calls or ()):
        yield Delta(index, "tool", _tool(tool, place))


def _tool(tool: ToolPart, place: int) -> str:
    """An OpenAI tool-call delta as canonical JSON. A whole message's calls carry no index."""
    body: Body = {"index": tool.index or place}
    if tool.id:
        body |= {"id": tool.id, "type": tool.type or "function"}
    if tool.function is not None:
        named = {"name": tool.function.name, "arguments": tool.function.arguments}
        body["function"] = {key: value for key, value in named.items() if value is not None}
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()


def _reason(reason: str) -> FinishReason:
    if reason in _REASONS:
        return reason  # type: ignore[return-value]
    return "tool_calls" if reason == "function_call" else "stop"


def _logprobs(raw: dict[str, Any]) -> Iterator[TokenLogprob]:
    """Chat's {"content": [...]} or the older {"tokens": [...], "token_logprobs": [...]}."""
    for entry in raw.get("content") or raw.get("refusal") or ():
        top = tuple(_entry(other) for other in entry.get("top_logprobs") or ())
        yield _entry(entry, top)
    tops = raw.get("top_logprobs") or ()
    pairs = zip(raw.get("tokens") or (), raw.get("token_logprobs") or (), strict=False)
    for at, (token, logprob) in enumerate(pairs):
        others = (tops[at] or {}) if at < len(tops) else {}
        best = sorted(others.items(), key=lambda pair: -pair[1])
        top = tuple(TokenLogprob(t, t.encode(), float(p)) for t, p in best)
        yield TokenLogprob(token, token.encode(), float(logprob or 0.0), top)


def _entry(entry: dict[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    token = str(entry.get("token", ""))
    raw = entry.get("bytes")
    return TokenLogprob(
        token,
        bytes(raw) if raw is not None else token.encode(),
        float(entry.get("logprob", 0.0)),
        top,
    )


def usage_of(part: UsagePart) -> Usage | None:
    """All that the server computed: everything but what it had cached. Money is counted by it, so
    that no count is below zero and no more was cached than there is. None where one is missing."""
    details = part.prompt_tokens_details
    if part.prompt_tokens is None or part.completion_tokens is None:
        return None
    prompt, completion = max(0, part.prompt_tokens), max(0, part.completion_tokens)
    cached = min(prompt, max(0, (details.cached_tokens or 0) if details else 0))
    return Usage(prompt, completion, cached, prompt - cached + completion)
