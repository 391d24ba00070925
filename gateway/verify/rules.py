"""What the checks of all tables share: what a finding is, and how names, hosts and URLs look."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from gateway.settings import Cascade, Tenant

Key = tuple[str | int, ...]
Finding = tuple[Key, str]
"""Where in the file, and what is wrong with it and how it is put right."""

AUTO = "auto"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
MOST_ERROR = 0.5
"""A semantic cache that may be wrong more often than this needs no promise."""
_HASH = re.compile(r"[0-9a-f]{64}")
_OF_NOTHING = hashlib.sha256(b"").hexdigest()


def installed(*modules: str) -> bool:
    try:
        return all(find_spec(name) is not None for name in modules)
    except ModuleNotFoundError:  # the package that one of them would lie in
        return False


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def hashes(key: Key, keys: tuple[str, ...]) -> Iterator[Finding]:
    if any(not _HASH.fullmatch(one) for one in keys):
        yield (
            key,
            "must be SHA-256 hashes in lower-case hex, never keys themselves; "
            'make one with: printf %s "$KEY" | sha256sum',
        )
    if _OF_NOTHING in keys:
        yield key, "holds the hash of nothing at all: the key was empty when it was hashed"


def shares(key: Key, table: Cascade | Tenant) -> Iterator[Finding]:
    for name in ("max_large_share", "shadow_share"):
        value = getattr(table, name)
        if value is not None and not 0 <= value <= 1:
            yield (*key, name), f"is a share, from 0 to 1; got {value}"
    if table.usd_per_day is not None and table.usd_per_day <= 0:
        yield (*key, "usd_per_day"), f"must be above 0; got {table.usd_per_day}"
