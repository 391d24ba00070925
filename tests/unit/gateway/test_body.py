from __future__ import annotations

from typing import Any

import pytest

from gateway.api.body import check_length, read_body
from gateway.api.watch import ClientGone
from gateway.errors import BodyTooLarge


class Wire:
    """Messages of a request, in order; counts how many were read."""

    def __init__(self, *pieces: bytes, gone: bool = False) -> None:
        self.messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": piece, "more_body": gone or i < len(pieces) - 1}
            for i, piece in enumerate(pieces)
        ]
        if gone:
            self.messages.append({"type": "http.disconnect"})

    async def __call__(self) -> dict[str, Any]:
        return self.messages.pop(0)


async def test_a_body_is_put_together() -> None:
    assert await read_body(Wire(b"abc"), 3) == b"abc"
    assert await read_body(Wire(b"ab", b"", b"c"), 3) == b"abc"
    assert await read_body(Wire(b""), 3) == b""


async def test_too_much_is_refused_after_the_rest_was_let_through() -> None:
    for wire in (Wire(b"abcd"), Wire(b"ab", b"cd", b"ef", b"gh")):
        with pytest.raises(BodyTooLarge):
            await read_body(wire, 3)
        assert wire.messages == []


async def test_half_a_body_and_a_hang_up_is_a_client_gone() -> None:
    with pytest.raises(ClientGone):
        await read_body(Wire(b"ab", gone=True), 3)


def test_a_body_that_says_its_size_is_not_read_at_all() -> None:
    with pytest.raises(BodyTooLarge):
        check_length(b"4", 3)
    check_length(b"3", 3)
    check_length(None, 3)
