"""The types of ASGI, and how to send a small response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from gateway.errors import Headers

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = (b"content-type", b"application/json")


async def respond(
    send: Send,
    status: int,
    body: bytes,
    headers: Headers,
    content_type: tuple[bytes, bytes] = JSON,
) -> None:
    """A whole response."""
    length = (b"content-length", b"%d" % len(body))
    all_headers = [content_type, length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})
