"""Combinations of settings that cannot work, each with its remedy.

Types are right when these run (gateway/configure.py); what is judged here is sense: ranges,
references between tables, and what would be unsafe to serve.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from gateway.settings import Settings
from gateway.verify.caches import account, semantic, stores
from gateway.verify.models import cascade, models
from gateway.verify.rules import Finding, Key, hashes, installed, is_loopback
from gateway.verify.tenants import tenants

DEVICES = re.compile(r"auto|cpu|cuda(:\d{1,2})?")
"""What the engine can be asked to run on; whether it is there is found out at load."""


def impossibilities(settings: Settings) -> Iterator[Finding]:
    """Every combination that cannot work, as (key, message)."""
    yield from _server(settings)
    yield from _finite(settings)
    yield from _numbers(settings)
    yield from _engine(settings)
    yield from models(settings)
    yield from cascade(settings)
    yield from stores(settings)
    yield from account(settings)
    yield from semantic(settings)
    yield from _traces(settings)
    yield from hashes(("admin", "keys"), settings.admin.keys)
    yield from hashes(("admin", "metrics_keys"), settings.admin.metrics_keys)
    yield from tenants(settings)


def _server(settings: Settings) -> Iterator[Finding]:
    server = settings.server
    if not 0 <= server.port <= 65_535:
        yield ("server", "port"), f"must be 0 to 65535; got {server.port}"
    open_tenants = [tenant.name for tenant in settings.tenants if not tenant.asks_for_key]
    if open_tenants and not is_loopback(server.host):
        yield (
            ("server", "host"),
            f"listening on {server.host!r} while tenant {open_tenants[0]!r} needs no key would let "
            "anyone in; give each tenant `keys` (sha256 of a key) or `stored_keys = true`, or "
            "listen on 127.0.0.1",
        )


def _finite(settings: Settings) -> Iterator[Finding]:
    """TOML can write nan and inf, which pass every comparison that they should not."""
    tables: list[tuple[Key, Any]] = [(("server",), settings.server)]
    tables += [(("cache", "exact"), settings.exact), (("cache", "semantic"), settings.semantic)]
    tables += [(("cascade",), settings.cascade), (("ledger",), settings.ledger)]
    tables += [(("engine",), settings.engine)]
    tables += [(("models", name), model) for name, model in settings.models.items()]
    tables += [(("tenants", index), tenant) for index, tenant in enumerate(settings.tenants)]
    for key, table in tables:
        for one in dataclasses.fields(table):
            value = getattr(table, one.name)
            if isinstance(value, float) and not math.isfinite(value):
                yield (*key, one.name), f"must be a number that ends; got {value}"


def _numbers(settings: Settings) -> Iterator[Finding]:
    """What must be above zero."""
    tables = (
        ("server", settings.server, ("max_body_bytes", "max_inflight", "request_timeout_s",
                                     "head_timeout_s", "body_timeout_s", "keep_alive_s",
                                     "heartbeat_s")),
        ("engine", settings.engine, ("threads", "kv_memory_mib", "page_size", "max_batched_tokens",
                                     "max_running", "max_waiting", "step_timeout_s")),
        ("cache.exact", settings.exact, ("ttl_s", "memory_bytes", "max_bytes",
                                          "scope_bytes", "patience_s")),
        ("cache.semantic", settings.semantic, ("ttl_s", "min_evidence", "max_entries",
                                               "max_per_user", "max_namespaces",
                                               "total_namespaces", "memory_bytes", "max_bytes",
                                               "scope_bytes")),
        ("limits", settings.limits, ("patience_s",)),
        ("ledger", settings.ledger, ("save_s", "minute_days", "hour_days", "day_days",
                                     "journal_bytes")),
    )  # fmt: skip
    for table, values, names in tables:
        for name in names:
            value = getattr(values, name)
            if value is not None and value <= 0:
                yield (*table.split("."), name), f"must be above 0; got {value}"
    if settings.server.shutdown_grace_s < 0:
        yield ("server", "shutdown_grace_s"), "must not be negative; 0 means at once"


def _engine(settings: Settings) -> Iterator[Finding]:
    engine = settings.engine
    if not DEVICES.fullmatch(engine.device):
        yield (
            ("engine", "device"),
            f"{engine.device!r} is no device; set auto, cpu, cuda or cuda:N",
        )
    tokens, running = engine.max_batched_tokens, engine.max_running
    if tokens == 1:
        yield ("engine", "max_batched_tokens"), "must be at least 2, or prompts starve; got 1"
    elif tokens is not None and running is not None and tokens <= running:
        yield (
            ("engine", "max_batched_tokens"),
            f"must be above max_running ({running}), or prompts starve; got {tokens}",
        )


def _traces(settings: Settings) -> Iterator[Finding]:
    traces = settings.traces
    if not 0 <= traces.share <= 1:
        yield ("traces", "share"), f"must be 0 to 1; got {traces.share:g}"
    if traces.endpoint is None:
        return
    place = urlsplit(traces.endpoint)
    if place.scheme not in {"http", "https"} or not place.hostname:
        yield ("traces", "endpoint"), f"must be http://HOST:PORT; got {traces.endpoint!r}"
    if not installed("opentelemetry.sdk", "opentelemetry.exporter.otlp"):
        yield (
            ("traces", "endpoint"),
            "needs OpenTelemetry: pip install 'sluice-gateway[traces]'",
        )
