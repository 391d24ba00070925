"""GET /healthz, /readyz, /metrics: is it alive, may it be sent requests, what has it done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from gateway.api.admin_gate import AdminGate
from gateway.drain import Drain
from gateway.observe.metrics import CONTENT_TYPE, Metrics

Check = Callable[[], str | None]
"""What is wrong with one part of the system, or None."""
Probe = Callable[[], Awaitable[str | None]]
"""The same of a part that the gateway can do without."""


def router(
    drain: Drain,
    checks: Mapping[str, Check],
    probes: Mapping[str, Probe],
    metrics: Metrics,
    gate: AdminGate,
    *,
    hints: Mapping[str, Check] = MappingProxyType({}),
) -> APIRouter:
    """`hints`: what an operator ought to know though nothing is wrong."""
    routes = APIRouter(tags=["health"])

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", summary="Alive")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", summary="Ready for requests: models loaded, stores reachable")
    async def readyz() -> JSONResponse:
        found = {name: check() for name, check in checks.items()}
        wrong = {name: problem for name, problem in found.items() if problem}
        if drain.draining:
            wrong["server"] = "shutting down"
        if wrong:
            return JSONResponse({"status": "unready", "problems": wrong}, 503, {"retry-after": "1"})
        weak = {name: text for name, probe in probes.items() if (text := await probe())}
        told: dict[str, object] = {"status": "degraded" if weak else "ready"}
        told["checked"] = sorted([*found, *probes])
        if weak:
            told["problems"] = weak
        if warnings := {name: text for name, hint in hints.items() if (text := hint())}:
            told["warnings"] = warnings
        return JSONResponse(told)

    @routes.get("/metrics", summary="Prometheus metrics", dependencies=[Depends(gate.metrics)])
    async def read_metrics() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return routes
