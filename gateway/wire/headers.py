"""Headers in and out: Cache-Control (RFC 9111), Cache-Status (RFC 9211), Server-Timing (W3C)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from engine.contract import BadCall, CacheStatus, Directives

PLAIN = Directives()
LONGEST_USER = 64
MOST_TAGS = 32
LONGEST_TAG = 128
"""In characters. Each tag of a stored answer is kept some three times, in two caches."""
_SHARE = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", re.ASCII)


def directives_of(header: bytes | None, max_error: bytes | None = None) -> Directives:
    """The request's Cache-Control and Sluice-Max-Error. Directives that we do not know are ignored,
    as RFC 9111 says."""
    if max_error is not None:
        return replace(directives_of(header), max_error=_share(max_error.decode("latin-1")))
    if header is None:
        return PLAIN
    given: dict[str, str] = {}
    for member in header.decode("latin-1").lower().split(","):
        name, _, value = member.strip().partition("=")
        given[name.strip()] = value.strip().strip('"')
    return Directives(
        no_store="no-store" in given,
        no_cache="no-cache" in given,
        only_if_cached="only-if-cached" in given,
        max_age_s=_seconds(given["max-age"]) if "max-age" in given else None,
    )


def _share(text: str) -> float:
    """Plain decimals only: what else `float` reads (nan, 1_0) is no share."""
    if not _SHARE.fullmatch(text.strip()) or float(text) > 1:
        raise BadCall(
            "Sluice-Max-Error must be a decimal like 0.01, from 0 (no semantic hit) to 1; "
            f"got {text!r}.",
            param="Sluice-Max-Error",
            code="invalid_value",
        )
    return float(text)


def _seconds(text: str) -> float:
    if not text.isdecimal():
        raise BadCall(f"Cache-Control: max-age must be whole seconds; got {text!r}.")
    return float(text)


def tags_of(header: bytes | None) -> tuple[str, ...]:
    """Sluice-Tags: a,b. Raises BadCall for more, or longer ones, than an answer may carry."""
    if header is None:
        return ()
    named = (tag.strip() for tag in header.decode("latin-1").split(","))
    tags = tuple(dict.fromkeys(tag for tag in named if tag))
    if len(tags) > MOST_TAGS or any(len(tag) > LONGEST_TAG for tag in tags):
        raise BadCall(
            f"Sluice-Tags may name {MOST_TAGS} tags of up to {LONGEST_TAG} characters each; got "
            f"{len(tags)}, the longest of {max(map(len, tags))} characters.",
            param="Sluice-Tags",
            code="invalid_value",
        )
    return tags


def traceparent_of(header: bytes | None) -> str:
    """W3C Trace Context, as it came: who uses it (observe/traces.py) ignores one that is broken."""
    return header.decode("latin-1") if header else ""


def user_tag(tenant: str, user: str) -> str:
    """The tag under which a user's stored answers are erased. A long name is hashed."""
    short = user if len(user) <= LONGEST_USER else hashlib.sha256(user.encode()).hexdigest()
    return f"user:{tenant}/{short}"


def tenant_tag(tenant: str, tag: str = "") -> str:
    """The tag of a tenant's answers in a scope that is not its name alone, and of those with a tag
    of its own."""
    return f"tenant:{tenant}/{tag}"


def labels_of(tags: tuple[str, ...], tenant: str, user: str, scope: str) -> tuple[str, ...]:
    """What stored answers can be purged by: the request's tags, and what names who asked."""
    labels = list(tags)
    if user:
        labels.append(user_tag(tenant, user))
    if scope != f"tenant:{tenant}":
        labels += [tenant_tag(tenant), *(tenant_tag(tenant, tag) for tag in tags)]
    return tuple(labels)


def cache_status(members: Iterable[CacheStatus]) -> bytes:
    """The member nearest the origin first: layers append as they are asked, outermost first."""
    return ", ".join([_member(one) for one in members][::-1]).encode("ascii", "replace")


def _member(one: CacheStatus) -> str:
    text = f"{one.layer}; hit" if one.hit else f"{one.layer}; fwd={one.forward or 'miss'}"
    if one.collapsed:
        text += "; collapsed"
    if one.ttl_s is not None:
        text += f"; ttl={int(one.ttl_s)}"
    if one.detail:
        printable = "".join([c if c.isprintable() else " " for c in one.detail])
        quoted = printable.replace("\\", "\\\\").replace('"', '\\"')
        text += f'; detail="{quoted}"'
    return text


def server_timing(spans_ms: Mapping[str, float]) -> bytes:
    """One duration per stage, in milliseconds."""
    return ", ".join([f"{name};dur={ms:.3f}" for name, ms in spans_ms.items()]).encode()
