"""GET /admin/tenants, /admin/tenants/{name}: who is served, and under which policy.

Hashes of keys are not told here: who may read policies need not be able to try keys out offline.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from gateway.api.admin_gate import AdminGate
from gateway.errors import NoSuchPath
from gateway.live import Live
from gateway.settings import Tenant
from gateway.tenants.budgets import NANO, Budgets, limits_of
from gateway.tenants.lease_store import LeaseStoreFault
from gateway.tenants.policy import Resolved, resolved
from gateway.tenants.pot import Period

UNTOLD = frozenset({"keys"})


class PolicyLine(BaseModel):
    """One value of a resolved policy."""

    name: str
    value: Any
    source: str = Field(description="sluice.toml:LINE, a variable, a flag, default, or a setting")
    meaning: str


class BudgetOut(BaseModel):
    """A budget of the period that is now, in US dollars."""

    period: str = Field(description="day or month, in UTC")
    limit_usd: float
    used_usd: float | None = Field(
        description="Spent, reserved, or leased by other gateways; null while the store is away"
    )


class TenantOut(BaseModel):
    """A tenant and the policy that holds for it."""

    name: str
    policy: list[PolicyLine]
    budgets: list[BudgetOut]


class TenantList(BaseModel):
    tenants: list[str]
    problem: str | None = Field(description="Why the newest sluice.toml is not in force")
    waiting: list[str] = Field(
        description="Settings that the newest sluice.toml changes and only a restart takes on"
    )


def router(live: Live, gate: AdminGate, budgets: Budgets) -> APIRouter:
    routes = APIRouter(prefix="/admin", tags=["admin"])
    admin = Depends(gate)

    @routes.get("/tenants", summary="The tenants in force")
    def list_tenants(_: str = admin) -> TenantList:
        return TenantList(
            tenants=[tenant.name for tenant in live.settings.tenants],
            problem=live.problem,
            waiting=list(live.waiting),
        )

    @routes.get("/tenants/{name}", summary="A tenant's resolved policy, with sources")
    async def one_tenant(name: str, _: str = admin) -> TenantOut:
        try:
            lines = resolved(live.settings, live.sources, name)
        except KeyError:
            raise no_such_tenant(live, name) from None
        tenant = next(one for one in live.settings.tenants if one.name == name)
        return TenantOut(
            name=name,
            policy=[_shown(line) for line in lines if line.name not in UNTOLD],
            budgets=await _budgets(budgets, tenant),
        )

    return routes


def no_such_tenant(live: Live, name: str) -> NoSuchPath:
    known = ", ".join(tenant.name for tenant in live.settings.tenants)
    return NoSuchPath(f"There is no tenant {name!r}; there are: {known}.", code="no_such_tenant")


async def _budgets(budgets: Budgets, tenant: Tenant) -> list[BudgetOut]:
    used: dict[Period, int] = {}
    with suppress(LeaseStoreFault):
        used = {one.period: one.used for one in await budgets.used(tenant)}
    return [
        BudgetOut(
            period=period,
            limit_usd=limit / NANO,
            used_usd=used[period] / NANO if period in used else None,
        )
        for period, limit in limits_of(tenant)
    ]


def _shown(line: Resolved) -> PolicyLine:
    value = dict(line.value) if isinstance(line.value, Mapping) else line.value
    return PolicyLine(name=line.name, value=value, source=line.source, meaning=line.meaning)
