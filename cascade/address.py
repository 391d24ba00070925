"""Where a request may be sent: no private network unless the settings allow it.

Base URLs come from settings and may one day come from tenants. A name that resolves to
169.254.169.254 or 10.0.0.1 would let whoever chooses it read what only this machine may reach. So a
name is resolved here, every address that it has is checked, and the request goes to the checked
address with the name in Host and SNI: a name that resolves differently a moment later (rebinding)
gains nothing.

Price: one look-up per name and half minute. Literal addresses are checked once, and the URL of each
path is put together once for each address (it took a seventh of the time of a request).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import httpx

_IPV4_INSIDE = (IPv6Network("::/96"), IPv6Network("64:ff9b::/96"))

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) → addresses, as text."""


class AddressRefused(ValueError):
    """The address may not be reached, and which setting would allow it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to send: `url` has the address in it, `host` is the Host header, `name` is for SNI."""

    url: httpx.URL
    host: str
    name: str


async def resolve_by_system(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Addresses:
    """Resolves the host of one base URL. Owned by one remote model."""

    def __init__(
        self,
        base_url: str,
        *,
        allow_private: bool = False,
        resolve: Resolve = resolve_by_system,
        clock: Callable[[], float] = time.monotonic,
        ttl_s: float = 30.0,
    ) -> None:
        self._url = _url_of(base_url)
        self._allow_private = allow_private
        self._resolve = resolve
        self._clock = clock
        self._ttl_s = ttl_s
        self._known: tuple[float, str] | None = None
        self._places: dict[str, tuple[str, Place]] = {}
        self._literal = _is_literal(self._url.host)
        if self._literal:
            self._check(self._url.host)

    async def place(self, path: str) -> Place:
        """Raises AddressRefused, or OSError when the name does not resolve."""
        address = await self._address()
        known = self._places.get(path)
        if known is None or known[0] != address:
            known = self._places[path] = (address, self._placed(path, address))
        return known[1]

    def _placed(self, path: str, address: str) -> Place:
        url = self._url.copy_with(path=self._url.path.rstrip("/") + path, host=address)
        return Place(url, self._url.netloc.decode("ascii"), self._url.host)

    async def _address(self) -> str:
        host = self._url.host
        if self._literal:
            return host
        now = self._clock()
        if self._known is not None and now < self._known[0]:
            return self._known[1]
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        found = await self._resolve(host, port)
        for address in found:
            self._check(address)
        if not found:
            raise OSError(f"{host} has no address")
        self._known = (now + self._ttl_s, found[0])
        return found[0]

    def _check(self, address: str) -> None:
        if self._allow_private:
            return
        ip = _reached(ipaddress.ip_address(address.partition("%")[0]))
        if not ip.is_global or ip.is_multicast:
            raise AddressRefused(
                f"{self._url.host} is at {address}, which is not a public address; "
                "set allow_private = true for this model if that is meant"
            )


def _url_of(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise AddressRefused(f"base_url {base_url!r} is not an http or https URL") from error
    if url.userinfo:
        raise AddressRefused(
            "base_url holds a name or a password; settings hold no secrets: name the environment "
            "variable of the key in api_key_env, or of a whole header in headers"
        )
    if url.scheme not in {"http", "https"} or not url.host:
        raise AddressRefused(f"base_url {base_url!r} is not an http or https URL")
    return url


def _reached(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Where a packet to `ip` ends: IPv6 has ways to write an IPv4 address (RFC 4291 §2.5.5, 3056,
    6052), and a translator on the way would take a private one inside."""
    if isinstance(ip, IPv4Address):
        return ip
    inside = ip.ipv4_mapped or ip.sixtofour
    if inside is None and any(ip in network for network in _IPV4_INSIDE):
        inside = IPv4Address(int(ip) & 0xFFFF_FFFF)
    return inside or ip


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
