"""GET /admin/decisions and /admin/cascade: why each answer came from where it came from, and how
`auto` chooses for each tenant.

The list is of the last `rollup.RECENT` calls, in memory; one call's story is found as long as its
journal is kept (observe/journal.py). Names and numbers only: no prompt, no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query

from cascade.shadow import Shadow
from engine.contract import CUT, CacheStatus, Decision, Usage
from gateway.api.admin_gate import AdminGate
from gateway.errors import NoSuchPath
from gateway.observe.explain import explain, layers_of, why
from gateway.observe.keeper import Keeper
from gateway.observe.ledger import Record
from gateway.observe.rollup import plus
from gateway.parts.policies import TenantPolicy

PREFIXES = ("chatcmpl-", "cmpl-")
"""What the wire puts before an id."""
Layer = Literal["exact", "semantic", "join", "cascade", "fallback"]
"""Who can decide what becomes of a call."""
CacheError = Callable[[str], float]
"""Tenant → how often its semantic cache may be wrong, as a share of its requests; 0: it has none
that promises anything."""


def router(
    keeper: Keeper,
    policies: Mapping[str, TenantPolicy],
    cache_error: CacheError,
    shadow: Shadow,
    gate: AdminGate,
) -> APIRouter:
    """`policies` and `cache_error` are asked for each request: tenants are reloaded."""
    routes = APIRouter(prefix="/admin", tags=["admin"])
    _add_decisions(routes, keeper, Depends(gate))
    _add_policies(routes, policies, cache_error, shadow, admin=Depends(gate))
    return routes


def _add_decisions(routes: APIRouter, keeper: Keeper, admin: Any) -> None:
    @routes.get("/decisions", summary="The last decisions, newest first")
    async def list_decisions(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        tenant: str | None = None,
        layer: Layer | None = None,
        _: str = admin,
    ) -> dict[str, Any]:
        keeper.rollup.fold()
        found: list[dict[str, Any]] = []
        for record in reversed(keeper.rollup.recent):
            if _matches(record, tenant, layer):
                found.append(line_of(record))
            if len(found) == limit:
                break
        return {"decisions": found}

    @routes.get("/decisions/{request_id}", summary="Why one request was answered as it was")
    async def one_request(request_id: str, _: str = admin) -> dict[str, Any]:
        own = request_id
        for prefix in PREFIXES:
            own = own.removeprefix(prefix)
        booked = await keeper.find(own) or await keeper.find_client(request_id)
        if not booked:
            raise NoSuchPath(
                f"Nothing is known of request {request_id!r}. Its id is the one in the answer or "
                "in x-request-id; the oldest calls are forgotten (ledger.journal_bytes).",
                code="no_such_request",
            )
        told = [line_of(one.record) | explain(one.record, one.prices) for one in booked]
        return {"decisions": told}


def _add_policies(
    routes: APIRouter,
    policies: Mapping[str, TenantPolicy],
    cache_error: CacheError,
    shadow: Shadow,
    *,
    admin: Any,
) -> None:
    @routes.get("/cascade", summary="How auto chooses for each tenant, and what it promises")
    async def list_policies(_: str = admin) -> dict[str, Any]:
        return {
            "tenants": [told(one, cache_error(one.tenant)) for one in policies.values()],
            "shadow": {
                "waiting": shadow.waiting,
                "labels": shadow.labels,
                "dropped": shadow.dropped,
            },
        }

    @routes.get("/cascade/{tenant}/curve", summary="Quality against the share of large calls")
    async def curve(tenant: str, _: str = admin) -> dict[str, Any]:
        policy = policies.get(tenant)
        if policy is None or not policy.report:
            raise NoSuchPath(
                f"Tenant {tenant!r} has no calibrated policy; run `sluice calibrate`.",
                code="no_such_policy",
            )
        return dict(policy.report)


def told(policy: TenantPolicy, cache_error: float) -> dict[str, Any]:
    """A tenant's policy. `cache_error`: what its semantic cache may be wrong about (0: no cache).
    Whoever is served by both may lose what both allow: the bounds add up."""
    promise = policy.promise
    own = None if promise is None else _bound(promise.epsilon, promise.delta)
    both = None
    if promise is not None and cache_error:
        both = _bound(promise.epsilon + cache_error, promise.delta)
    return {
        "tenant": policy.tenant,
        "policy": policy.policy,
        "key": policy.key,
        "calibrated": policy.calibrated,
        "promise": own and {**own, "labels": policy.labels},
        "with_semantic_cache": both,
        "source": policy.source,
        "note": policy.note,
        "why": policy.why,
        "passed_over": list(policy.passed_over),
    }


def _bound(loss: float, delta: float) -> dict[str, float]:
    return {"max_loss": round(loss, 6), "confidence": round(1 - delta, 6)}


def line_of(record: Record) -> dict[str, Any]:
    """One call, without content. Money in US dollars, times in milliseconds. Tokens are those of
    the answer, or of as much of it as there was when it was cut."""
    usage = produced(record)
    return {
        "id": record.id,
        "client_id": record.client_id,
        "at": record.at,
        "tenant": record.tenant,
        "model": record.model,
        "origin": record.origin,
        "status": record.status,
        "ms": round(record.seconds * 1e3, 2),
        "ttft_ms": None if record.ttft_s is None else round(record.ttft_s * 1e3, 2),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "computed_tokens": usage.computed_tokens,
        "why": why(record),
        "cache": [_cache(one) for one in record.cache],
        "steps": [_step(one) for one in record.decisions],
        "wasted": [
            {
                "model": one.model,
                "prompt_tokens": one.usage.prompt_tokens,
                "completion_tokens": one.usage.completion_tokens,
                "cached_tokens": one.usage.cached_tokens,
                "why": one.why,
                "estimated": one.estimated,
            }
            for one in record.wasted
        ],
    }


def produced(record: Record) -> Usage:
    """An answer that was cut has no usage: nobody was given it. What it took is with the waste."""
    usage = record.usage
    for one in record.wasted:
        if one.why == CUT:
            usage = plus(usage, one.usage)
    return usage


def _cache(status: CacheStatus) -> dict[str, Any]:
    result = "hit" if status.hit else "joined" if status.collapsed else status.forward or "miss"
    return {"layer": status.layer, "result": result, "detail": status.detail}


def _step(decision: Decision) -> dict[str, Any]:
    return {
        "layer": decision.layer,
        "choice": decision.choice,
        "reason": decision.reason,
        "policy": decision.policy,
        "score": _rounded(decision.score),
        "cut": _rounded(decision.cut),
        "costs_usd": {model: nano * 1e-9 for model, nano in decision.costs_nano},
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def _matches(record: Record, tenant: str | None, layer: str | None) -> bool:
    if tenant is not None and record.tenant != tenant:
        return False
    return layer is None or layer in layers_of(record)
