"""How /v1/completions writes answers: OpenAI's `text_completion`, whole and in chunks."""

from __future__ import annotations

import codecs
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
        self._offsets: dict[int, Offsets] = defaultdict(Offsets)

    def choices(self, collected: Collected, look: Look) -> bytes:
        return to_json(
            [
                {
                    "index": index,
                    "text": "".join(choice.text),
                    "logprobs": text_logprobs(choice.logprobs, Offsets())
                    if look.logprobs
                    else None,
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


class Offsets:
    """Where each token begins, in characters of the answer's text. Counted by the tokens' bytes: a
    token that is part of a character is shown as `bytes:\\xe7` and adds nothing to the text before
    the character is whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def of(self, token: TokenLogprob) -> int:
        """The next token's."""
        begins = self._at
        self._at += len(self._decoder.decode(token.token_bytes or token.token.encode()))
        return begins


def text_logprobs(tokens: Iterable[TokenLogprob], offsets: Offsets) -> dict[str, Any]:
    """OpenAI's older shape: parallel arrays."""
    chosen = list(tokens)
    return {
        "tokens": [one.token for one in chosen],
        "token_logprobs": [finite(one.logprob) for one in chosen],
        "top_logprobs": [_best(one.top) for one in chosen],
        "text_offset": [offsets.of(one) for one in chosen],
    }


def _best(top: Iterable[TokenLogprob]) -> dict[str, float | None]:
    """By the token's text; of two that read alike the likelier, which comes first."""
    best: dict[str, float | None] = {}
    for one in top:
        best.setdefault(one.token, finite(one.logprob))
    return best
