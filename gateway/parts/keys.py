"""[keys] → the store of keys."""

from __future__ import annotations

from pathlib import Path

from gateway.settings import Keys
from gateway.tenants.key_store import KeyStore, SqliteKeyStore


def build_key_store(settings: Keys) -> KeyStore:
    """Raises KeyStoreFault where a file cannot be used; a Redis is asked later."""
    if settings.store == "memory://":
        return SqliteKeyStore(":memory:")
    if settings.store.startswith("sqlite:///"):
        return SqliteKeyStore(Path(settings.store.removeprefix("sqlite:///")))
    # The client library is an optional dependency.
    from gateway.tenants.key_store_redis import RedisKeyStore  # noqa: PLC0415

    return RedisKeyStore(settings.store)
