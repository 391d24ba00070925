"""GET /admin/tenants, /admin/tenants/{name}: who is served, and under which policy.

Hashes of keys are not told here: who may read policies need not be able to try keys out offline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from gateway.api.admin_gate import AdminGate
from gateway.errors import NoSuchPath
from gateway.live import Live
from gateway.tenants.policy import Resolved, resolved

UNTOLD = frozenset({"keys"})


class PolicyLine(BaseModel):
    """One value of a resolved policy."""

    name: str
    value: Any
    source: str = Field(description="sluice.toml:LINE, a variable, a flag, default, or a setting")
    meaning: str


class TenantOut(BaseModel):
    """A tenant and the policy that holds for it."""

    name: str
    policy: list[PolicyLine]


class TenantList(BaseModel):
    tenants: list[str]
    problem: str | None = Field(description="Why the newest sluice.toml is not in force")


def router(live: Live, gate: AdminGate) -> APIRouter:
    routes = APIRouter(prefix="/admin", tags=["admin"])
    admin = Depends(gate)

    @routes.get("/tenants", summary="The tenants in force")
    def list_tenants(_: str = admin) -> TenantList:
        return TenantList(
            tenants=[tenant.name for tenant in live.settings.tenants], problem=live.problem
        )

    @routes.get("/tenants/{name}", summary="A tenant's resolved policy, with sources")
    def one_tenant(name: str, _: str = admin) -> TenantOut:
        try:
            lines = resolved(live.settings, live.sources, name)
        except KeyError:
            raise no_such_tenant(live, name) from None
        return TenantOut(
            name=name, policy=[_shown(line) for line in lines if line.name not in UNTOLD]
        )

    return routes


def no_such_tenant(live: Live, name: str) -> NoSuchPath:
    known = ", ".join(tenant.name for tenant in live.settings.tenants)
    return NoSuchPath(f"There is no tenant {name!r}; there are: {known}.", code="no_such_tenant")


def _shown(line: Resolved) -> PolicyLine:
    value = dict(line.value) if isinstance(line.value, Mapping) else line.value
    return PolicyLine(name=line.name, value=value, source=line.source, meaning=line.meaning)
