"""[[tenants]]: names, keys, limits, scopes, and the models that they may ask."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway.settings import Settings, Tenant
from gateway.verify.rules import AUTO, MOST_ERROR, NAME, Finding, Key, hashes

MOST_USD = 1_000_000
"""A budget is counted in nano-US-dollars, as a double in Redis."""
_SCOPE = re.compile(r"tenant|user|public|group:[A-Za-z0-9._-]{1,64}")


def tenants(settings: Settings) -> Iterator[Finding]:
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


def _one_tenant(key: Key, tenant: Tenant, settings: Settings) -> Iterator[Finding]:
    if not NAME.fullmatch(tenant.name):
        yield (*key, "name"), "a name is 1 to 64 letters, digits, . _ -"
    if not _SCOPE.fullmatch(tenant.cache_scope):
        yield (*key, "cache_scope"), "must be tenant, user, public, or group:NAME"
    yield from hashes((*key, "keys"), tenant.keys)
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


def _budgets(key: Key, tenant: Tenant) -> Iterator[Finding]:
    for name in ("budget_usd_day", "budget_usd_month"):
        value = getattr(tenant, name)
        if value is not None and not 0 < value <= MOST_USD:
            yield (*key, name), f"must be above 0 and at most {MOST_USD}; got {value}"


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
