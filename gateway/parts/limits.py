"""[limits] → where it is kept what tenants have used."""

from __future__ import annotations

from pathlib import Path

from gateway.settings import Limits
from gateway.tenants.lease_store import LeaseStore, SqliteLeaseStore


def build_lease_store(settings: Limits) -> LeaseStore:
    """Raises LeaseStoreFault where a file cannot be used; a Redis is asked later."""
    if settings.store == "memory://":
        return SqliteLeaseStore(":memory:")
    if settings.store.startswith("sqlite:///"):
        return SqliteLeaseStore(Path(settings.store.removeprefix("sqlite:///")))
    # The client library is an optional dependency.
    from gateway.tenants.lease_store_redis import RedisLeaseStore  # noqa: PLC0415

    return RedisLeaseStore(settings.store)
