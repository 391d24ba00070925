"""Who may use /admin: the gate that every admin router depends on, and what it writes down.

With admin keys configured, a key is needed from everywhere. Without any, callers on this machine
are let in, and nobody else: over loopback, not passed on by a proxy, asking for a name of this
machine (a page from elsewhere may let its own name point here, to read what we say), and not sent
by a page of another origin (which could make a browser change things without reading the answer).

Each change is one line in the log, `audit`: who, what, to whom; never a key or its hash.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from gateway.errors import Unauthenticated
from gateway.observe.logs import Log
from gateway.tenants.keys import AdminKeys
from gateway.verify.rules import is_loopback

_SCHEME = HTTPBearer(
    auto_error=False, scheme_name="AdminKey", description="A key whose hash is in [admin] keys"
)

_FROM_PROXIES = frozenset({"forwarded", "via", "x-real-ip", "cf-connecting-ip", "true-client-ip"})
"""Beside all that begin with x-forwarded: what a proxy adds, in lower case. One that adds nothing
cannot be told from a caller on this machine: behind a proxy an admin key is needed."""


class AdminGate:
    """A FastAPI dependency: `Depends(gate)`. Returns who asks, for `audit`."""

    def __init__(self, keys: AdminKeys, host: str, log: Log) -> None:
        """`host`: what the server listens on, as configured."""
        self._keys = keys
        self._host = host
        self._log = log

    def __call__(
        self,
        request: Request,
        _documented: Annotated[HTTPAuthorizationCredentials | None, Security(_SCHEME)] = None,
    ) -> str:
        """Raises Unauthenticated."""
        who = self._keys.who(request.headers.raw)
        if who is not None:
            return f"key {who}"
        if self._keys.any:
            raise Unauthenticated(
                "Send an admin key as `Authorization: Bearer KEY`; its SHA-256 is listed under "
                "`keys` in [admin].",
                code="admin_key_needed",
            )
        if not is_local(request, self._host) or _is_from_elsewhere(request):
            raise Unauthenticated(
                "Without admin keys, /admin is for callers on this machine; to use it from afar, "
                "put a key's SHA-256 into `keys` in [admin].",
                code="admin_only",
            )
        return "local"

    def metrics(self, request: Request) -> None:
        """A dependency, too: who may read /metrics. Raises Unauthenticated."""
        if self._keys.may_read_metrics(request.headers.raw):
            return
        try:
            self(request)
        except Unauthenticated as error:
            raise Unauthenticated(
                f"/metrics names every tenant. {error} For Prometheus put the SHA-256 of a key of "
                "its own into `metrics_keys` in [admin], or set `open_metrics`.",
                code="metrics_key_needed",
            ) from None

    def audit(self, who: str, did: str, **what: Any) -> None:
        """One line for one change. `what` holds names, never secrets."""
        self._log.info("audit", who=who, did=did, **what)


def is_local(request: Request, host: str) -> bool:
    """A request that came over loopback, was not passed on by a proxy (which would let anyone look
    local), and asks for a name of this machine."""
    if request.client is None or any(map(_is_from_proxy, request.headers)):
        return False
    named = _host_of(f"//{request.headers.get('host', '')}")
    if named != host and not is_loopback(named):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _is_from_proxy(header: str) -> bool:
    return header in _FROM_PROXIES or header.startswith("x-forwarded")


def _is_from_elsewhere(request: Request) -> bool:
    """Whether a browser sent it for a page that is not ours."""
    origin, host = request.headers.get("origin"), request.headers.get("host")
    return origin is not None and origin not in {f"http://{host}", f"https://{host}"}


def _host_of(url: str) -> str:
    """`//[::1]:8080` → `::1`."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
