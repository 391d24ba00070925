"""Reading a request's body: all of it, but not more than allowed, and not for longer than that.

Bytes are kept only up to the limit. When a body turns out to be too large, the rest is read and
thrown away for a short while before the answer: a client that is still writing does not listen, and
closing on it at once would reach it as a broken connection and not as a 413. One that asked first
(`Expect: 100-continue`) or said its length is answered without reading anything.
"""

from __future__ import annotations

import asyncio

from gateway.api.watch import ClientGone
from gateway.asgi import Receive
from gateway.errors import BodyTooLarge

LINGER_S = 2.0


def check_length(content_length: bytes | None, max_bytes: int) -> None:
    """Raises BodyTooLarge for a body that says so itself."""
    if content_length and content_length.isdigit() and int(content_length) > max_bytes:
        raise _too_large(max_bytes)


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """The body, for as long as it takes (see Watch.arm_for_body). Raises BodyTooLarge, or
    ClientGone."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        only: bytes = message.get("body", b"")
        if len(only) > max_bytes:
            raise _too_large(max_bytes)
        return only
    pieces: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone("The client closed the connection before its request was complete.")
        piece = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            pieces.clear()
            await _drain(receive)
            raise _too_large(max_bytes)
        pieces.append(piece)
        if not message.get("more_body"):
            return b"".join(pieces)
        message = await receive()


async def _drain(receive: Receive) -> None:
    try:
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass
    except TimeoutError:
        return


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is larger than {max_bytes} bytes; send less, or have the operator raise "
        "max_body_bytes in [server].",
        code="body_too_large",
    )
