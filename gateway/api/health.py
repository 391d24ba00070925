"""GET /healthz, /readyz, /metrics: is it alive, may it be sent requests, what has it done."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from gateway.drain import Drain
from gateway.observe.metrics import CONTENT_TYPE, Metrics

Check = Callable[[], str | None]
"""What is wrong with one part of the system, or None."""


def router(drain: Drain, checks: Mapping[str, Check], metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", summary="Alive")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz", summary="Ready for requests: models loaded, stores reachable")
    def readyz() -> JSONResponse:
        found = {name: check() for name, check in checks.items()}
        wrong = {name: problem for name, problem in found.items() if problem}
        if drain.draining:
            wrong["server"] = "shutting down"
        if wrong:
            return JSONResponse({"status": "unready", "problems": wrong}, 503, {"retry-after": "1"})
        return JSONResponse({"status": "ready", "checked": sorted(found)})

    @routes.get("/metrics", summary="Prometheus metrics")
    def read_metrics() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return routes
