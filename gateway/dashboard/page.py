"""GET /dashboard: one page that shows what is happening, fed by /dashboard/data.

The page is three static files, served as they are under a policy that allows nothing else: no
script but its own, no request but to this server, no framing. It is shown to callers on this
machine and to those with an admin key (`Authorization: Bearer`, which a proxy in front may add).
Prompts and answers are not in the data at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from gateway.api.admin_gate import is_local
from gateway.drain import Drain
from gateway.errors import Unauthenticated
from gateway.observe.ledger import Record
from gateway.observe.metrics import EngineStates
from gateway.observe.rollup import Durations, RollUp
from gateway.tenants.keys import AdminKeys

FILES = Path(__file__).resolve().parent / "static"
SHOWN = 50
"""Of the last calls."""
KINDS = {
    "index.html": "text/html; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
}
SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def router(
    rollup: RollUp, engine: EngineStates, drain: Drain, admin: AdminKeys, host: str
) -> APIRouter:
    """`host`: what the server listens on, as configured."""
    routes = APIRouter(tags=["dashboard"], include_in_schema=False)
    files = {name: (FILES / name).read_bytes() for name in KINDS}

    def check(request: Request) -> None:
        if not admin.allows(request.headers.raw, is_local(request, host)):
            raise Unauthenticated("The dashboard is for this machine, or for an admin key "
                                  "(`Authorization: Bearer KEY`).", code="admin_only")  # fmt: skip

    def serve(name: str) -> Response:
        return Response(files[name], media_type=KINDS[name], headers=SAFE)

    @routes.get("/dashboard")
    def read_page(request: Request) -> Response:
        check(request)
        return serve("index.html")

    @routes.get("/dashboard/data")
    async def read_data(request: Request) -> Response:
        check(request)
        rollup.fold()
        return JSONResponse(summary(rollup, engine, drain), headers=SAFE)

    @routes.get("/dashboard/{name}")
    def read_file(name: str, request: Request) -> Response:
        check(request)
        return serve(name) if name in files else Response(status_code=404)

    return routes


def summary(rollup: RollUp, engine: EngineStates, drain: Drain) -> dict[str, Any]:
    """Everything the page shows. Money in US dollars, times in milliseconds."""
    counts = {key: one.count for key, one in rollup.sums.items()}
    tokens, nano_usd = rollup.avoided()
    return {
        "at": time.time(),
        "inflight": drain.inflight,
        "draining": drain.draining,
        "requests": _by(counts, 2),
        "statuses": _by(counts, 3),
        "tenants": _by(counts, 0),
        "lookups": [[*names, count] for names, count in rollup.lookups.items()],
        "tokens_avoided": _by(tokens, 1),
        "usd_avoided": {by: nano * 1e-9 for by, nano in _by(nano_usd, 1).items()},
        "usd_wasted": sum(rollup.wasted().values()) * 1e-9,
        "usd_spent": sum(rollup.spent().values()) * 1e-9,
        "latency_ms": {origin: _shape(one) for origin, one in rollup.request_s.items()},
        "ttft_ms": {origin: _shape(one) for origin, one in rollup.ttft_s.items()},
        "engine": {name: _state(state) for name, state in engine().items()},
        "recent": [_line(record) for record in islice(reversed(rollup.recent), SHOWN)],
    }


def _by(counts: Mapping[tuple[Any, ...], int], place: int) -> dict[str, int]:
    """Sums over everything but one part of the key."""
    sums: dict[str, int] = {}
    for names, count in counts.items():
        sums[str(names[place])] = sums.get(str(names[place]), 0) + count
    return sums


def _shape(durations: Durations) -> dict[str, float]:
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: durations.percentile(share) for name, share in shares.items()}
    return {name: round(s * 1e3, 3) for name, s in found.items() if s is not None}


def _state(state: Any) -> dict[str, Any]:
    return {
        "running": state.running,
        "waiting": state.waiting,
        "preemptions": state.preemptions,
        "pages": dict(state.pages),
    }


def _line(record: Record) -> dict[str, Any]:
    """One decision, without content."""
    return {
        "at": record.at,
        "id": record.id,
        "tenant": record.tenant,
        "model": record.model,
        "origin": record.origin,
        "status": record.status,
        "prompt_tokens": record.usage.prompt_tokens,
        "completion_tokens": record.usage.completion_tokens,
        "ms": round(record.seconds * 1e3, 2),
        "why": [f"{one.layer}: {one.choice} ({one.reason})" for one in record.decisions],
        "cache": [
            f"{one.layer} {'hit' if one.hit else one.forward}{' joined' if one.collapsed else ''}"
            for one in record.cache
        ],
    }
