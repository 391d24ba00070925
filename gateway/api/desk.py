"""What the small endpoints of tenants share: who asks, within which limits, and what was sent.

They are FastAPI routes, but their bodies are read and decoded as the hot paths' are: only after the
key is known, never more than `max_body_bytes`, and with an error that names the field.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import Request

from engine.contract import BadCall
from gateway.api.body import check_length, read_body
from gateway.errors import BodyTooSlow
from gateway.settings import Server, Tenant
from gateway.tenants.keys import Keys
from gateway.tenants.limits import Limits
from gateway.wire.parse import Decoder

Shape = TypeVar("Shape", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Desk:
    """Built once by gateway/assemble.py."""

    keys: Keys
    limits: Limits
    server: Server

    @asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[Tenant]:
        """The tenant; its request counts from here on. Raises Unauthenticated or TooMany."""
        given = request.headers.get("authorization")
        tenant = self.keys.tenant(given.encode("latin-1") if given else None)
        if not self.limits.watches(tenant.name):
            yield tenant
            return
        await self.limits.admit(tenant.name)
        try:
            yield tenant
        finally:
            self.limits.leave(tenant.name)

    async def read(self, request: Request, decoder: Decoder[Shape]) -> Shape:
        """What was sent. Raises BodyTooLarge, BodyTooSlow or BadCall."""
        length = request.headers.get("content-length")
        check_length(length.encode("latin-1") if length else None, self.server.max_body_bytes)
        try:
            async with asyncio.timeout(self.server.body_timeout_s):
                body = await read_body(request.receive, self.server.max_body_bytes)
        except TimeoutError:
            raise BodyTooSlow(
                f"The body did not arrive within {self.server.body_timeout_s:g} s; send it faster."
            ) from None
        asked, unknown = decoder.decode(body)
        if unknown is not None:
            names = ", ".join(sorted(msgspec.json.decode(unknown)))
            raise BadCall(f"Unknown fields: {names}. Leave them out.", code="unknown_parameter")
        return asked


def body_of(shape: type[msgspec.Struct]) -> dict[str, Any]:
    """A route's `openapi_extra`: its body's shape, from the decoder's own type."""
    _, parts = msgspec.json.schema_components([shape])
    content = {"application/json": {"schema": parts[shape.__name__]}}
    return {"requestBody": {"required": True, "content": content}}
