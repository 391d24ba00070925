"""[cache.exact] → the store of whole answers, and what a shared one puts into the onion."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cache.exact import Shelf, Terms
from cache.store.base import Store, Which
from cache.store.memory import MemoryStore
from cache.store.sqlite import READ_TIMEOUT_S, SqliteStore
from cache.store.tiered import TieredStore
from engine.contract import Answerer, Call, Trail
from gateway.observe.logs import Log
from gateway.settings import ExactCache, Tenant
from gateway.tenants.roster import Roster


@dataclass(frozen=True, slots=True)
class Cache:
    """The store, and what one that gateways share puts into the onion."""

    store: Store
    share: Callable[[Shelf, Answerer], Answerer] = lambda _, recorded: recorded
    """Around what computes and records: one generation for all gateways."""
    bound: Callable[[Answerer], Answerer] = lambda cached: cached
    """Around all that may ask the store: one bound on a request's waiting."""
    on_purge: Callable[[Callable[[Which], Awaitable[object]]], None] = lambda _: None
    """Tell me what other gateways purge."""


def build_cache(settings: ExactCache, log: Log) -> Cache:
    """Memory, in front of a file or of a shared Redis if one is named."""
    memory = MemoryStore(settings.memory_bytes)
    if settings.store == "memory://":
        return Cache(memory)
    if settings.store.startswith("sqlite:///"):
        path = Path(settings.store.removeprefix("sqlite:///"))
        file = SqliteStore(
            path,
            settings.max_bytes,
            settings.scope_bytes,
            read_timeout_s=max(READ_TIMEOUT_S, settings.patience_s),
            on_event=log.warning,
        )
        return Cache(TieredStore(memory, file))
    return _shared_cache(settings, memory, log)


def _shared_cache(settings: ExactCache, memory: MemoryStore, log: Log) -> Cache:
    # The client library is an optional dependency.
    from cache.join_remote import SharedJoin  # noqa: PLC0415
    from cache.store.purge_feed import PurgeFeed  # noqa: PLC0415
    from cache.store.redis import RedisStore  # noqa: PLC0415
    from cache.store.redis_line import RedisLine, WithPatience  # noqa: PLC0415

    line = RedisLine(settings.store, patience_s=settings.patience_s, on_event=log.warning)
    feed = PurgeFeed(line)
    store = TieredStore(memory, RedisStore(line, feed, settings.scope_bytes), feed)
    return Cache(
        store,
        share=lambda shelf, recorded: SharedJoin(
            line, recorded, may_share=shelf.may_share, settle=store.flush, key=shelf.key
        ),
        bound=lambda cached: WithPatience(line, cached),
        on_purge=feed.subscribe,
    )


def exact_terms(exact: ExactCache, roster: Roster) -> Callable[[Call, Trail], Terms]:
    """Each tenant's terms of the exact cache, made once for each version of the tenant."""
    made: dict[str, tuple[Tenant, Terms]] = {}

    def terms_of(_: Call, trail: Trail) -> Terms:
        tenant = roster[trail.tenant]
        known = made.get(tenant.name)
        if known is None or known[0] is not tenant:
            ttl_s = exact.ttl_s if tenant.cache_ttl_s is None else tenant.cache_ttl_s
            terms = Terms(exact.enabled, ttl_s, tenant.allow_sampled_caching)
            known = made[tenant.name] = (tenant, terms)
        return known[1]

    return terms_of
