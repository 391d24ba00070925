"""How /v1/completions writes answers: OpenAI's `text_completion`, whole and in chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from engine.contract import Delta, Finish, TokenLogprob
from gateway.wire.collect import Collected
from gateway.wire.render import Look, finite, to_json


class CompletionSurface:
    name = "text"
    prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self) -> None:
        self._offsets: dict[int, int] = defaultdict(int)

    def choices(self, collected: Collected, look: Look) -> bytes:
        return to_json(
            [
                {
                    "index": index,
                    "text": "".join(choice.text),
                    "logprobs": text_logprobs(choice.logprobs, 0) if look.logprobs else None,
                    "finish_reason": choice.reason,
                }
                for index, choice in collected.opened()
            ]
        )

    def openings(self, _: Look) -> Iterable[bytes]:
        return ()

    def delta(self, delta: Delta, look: Look) -> bytes:
        logprobs = b"null"
        if look.logprobs and delta.logprobs:
            shape = text_logprobs(delta.logprobs, self._offsets[delta.index])
            self._offsets[delta.index] += sum(len(one.token) for one in delta.logprobs)
            logprobs = to_json(shape)
        return b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":null}' % (
            delta.index,
            to_json(delta.payload),
            logprobs,
        )

    def finish(self, finish: Finish) -> bytes:
        return b'{"index":%d,"text":"","logprobs":null,"finish_reason":"%s"}' % (
            finish.index,
            finish.reason.encode(),
        )


def text_logprobs(tokens: Iterable[TokenLogprob], offset: int) -> dict[str, Any]:
    """OpenAI's older shape: parallel arrays. `offset` is in characters of the answer's text."""
    chosen = list(tokens)
    offsets = []
    for one in chosen:
        offsets.append(offset)
        offset += len(one.token)
    return {
        "tokens": [one.token for one in chosen],
        "token_logprobs": [finite(one.logprob) for one in chosen],
        "top_logprobs": [{top.token: finite(top.logprob) for top in one.top} for one in chosen],
        "text_offset": offsets,
    }
