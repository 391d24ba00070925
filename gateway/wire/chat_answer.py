"""How /v1/chat/completions writes answers: OpenAI's `chat.completion` and its chunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.contract import Delta, Finish
from gateway.wire.collect import Choice, Collected
from gateway.wire.render import Look, chat_logprobs, to_json


class ChatSurface:
    name = "chat"
    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choices(self, collected: Collected, look: Look) -> bytes:
        return to_json(
            [
                {
                    "index": index,
                    "message": _message(choice),
                    "logprobs": chat_logprobs(choice.logprobs) if look.logprobs else None,
                    "finish_reason": choice.reason,
                }
                for index, choice in collected.opened()
            ]
        )

    def openings(self, look: Look) -> Iterable[bytes]:
        """Each choice says first who speaks."""
        return [
            b'{"index":%d,"delta":{"role":"assistant","content":"","refusal":null},'
            b'"logprobs":null,"finish_reason":null}' % index
            for index in range(look.n)
        ]

    def delta(self, delta: Delta, look: Look) -> bytes:
        logprobs = b"null"
        if look.logprobs and delta.logprobs:
            logprobs = to_json(chat_logprobs(delta.logprobs))
        return b'{"index":%d,"delta":{"%s":%s},"logprobs":%s,"finish_reason":null}' % (
            delta.index,
            _FIELD[delta.kind],
            _PAYLOAD[delta.kind](delta.payload),
            logprobs,
        )

    def finish(self, finish: Finish) -> bytes:
        return b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%s"}' % (
            finish.index,
            finish.reason.encode(),
        )


def _tool_payload(payload: str) -> bytes:
    """A tool delta is JSON already."""
    return b"[" + payload.encode() + b"]"


_FIELD = {"text": b"content", "reasoning": b"reasoning_content", "tool": b"tool_calls"}
_PAYLOAD = {"text": to_json, "reasoning": to_json, "tool": _tool_payload}


def _message(choice: Choice) -> dict[str, Any]:
    text = "".join(choice.text)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not choice.tools else None,
        "refusal": None,
    }
    if choice.reasoning:
        message["reasoning_content"] = "".join(choice.reasoning)
    if choice.tools:
        message["tool_calls"] = [call for _, call in sorted(choice.tools.items())]
    return message
