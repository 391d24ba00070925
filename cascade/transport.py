"""Connections to upstreams: one pool per process, ours or, for HTTP/2, httpx's own.

HTTP/2 (many streams on one connection, for servers far away that limit connections) needs httpx's
own pool and the package `h2`; it takes ten times the processor's time of ours (http1.py).
"""

from __future__ import annotations

import httpx

from cascade.http1 import Http1


def open_transport(
    *, http2: bool = False, max_connections: int = 512, verify: bool = True
) -> httpx.AsyncBaseTransport:
    """Call it with the event loop running; close it with `aclose`. Proxies named in the
    environment are not used: they would see what the address check cannot."""
    if http2:
        limits = httpx.Limits(
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=30.0,
        )
        return httpx.AsyncHTTPTransport(
            http2=True, limits=limits, verify=verify, trust_env=False, retries=0
        )
    tls = httpx.create_ssl_context(verify=verify, trust_env=False)
    return Http1(tls, max_connections=max_connections, keep_alive_s=30.0)
