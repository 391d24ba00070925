"""What the servers of bench/gateway.py answer: 35 pieces, about 110 tokens."""

from __future__ import annotations

import hashlib
import json

KEY = "sk-bench-0123456789abcdef0123456789abcdef"
PIECES = [f"word{i} and then {i} " for i in range(35)]


def canned() -> tuple[bytes, bytes]:
    """A whole answer and a stream, as the references send them."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "".join(PIECES)}}
    head = {"id": "chatcmpl-1", "created": 1, "model": "large"}
    whole = json.dumps({**head, "object": "chat.completion", "choices": [choice]}).encode()
    chunks = [{**head, "choices": [{"index": 0, "delta": {"content": piece}}]} for piece in PIECES]
    stream = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    return whole, stream + b"data: [DONE]\n\n"


class Reference:
    """Parse, canonical SHA-256, a dict: what any cache in Python must at least do."""

    def __init__(self) -> None:
        import orjson

        self._json = orjson
        self._kept: dict[bytes, tuple[bytes, bytes]] = {}
        self._canned = canned()

    def answer(self, body: bytes) -> tuple[bytes, bytes]:
        """(body, content type)"""
        request = self._json.loads(body)
        stream = request.pop("stream", False)
        packed = self._json.dumps(request, option=self._json.OPT_SORT_KEYS)
        whole, chunks = self._kept.setdefault(hashlib.sha256(packed).digest(), self._canned)
        return (chunks, b"text/event-stream") if stream else (whole, b"application/json")
