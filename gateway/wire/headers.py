"""Headers in and out: Cache-Control (RFC 9111), Cache-Status (RFC 9211), Server-Timing (W3C)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.contract import BadCall, CacheStatus, Directives

PLAIN = Directives()


def directives_of(header: bytes | None) -> Directives:
    """The request's Cache-Control. Directives that we do not know are ignored, as RFC 9111 says."""
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


def _seconds(text: str) -> float:
    if not text.isdecimal():
        raise BadCall(f"Cache-Control: max-age must be whole seconds; got {text!r}.")
    return float(text)


def tags_of(header: bytes | None) -> tuple[str, ...]:
    """Sluice-Tags: a,b."""
    if header is None:
        return ()
    tags = (tag.strip() for tag in header.decode("latin-1").split(","))
    return tuple(tag for tag in tags if tag)


def traceparent_of(header: bytes | None) -> str:
    """W3C Trace Context, as it came: who uses it (observe/traces.py) ignores one that is broken."""
    return header.decode("latin-1") if header else ""


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
