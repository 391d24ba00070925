"""GET /dashboard: one page that shows what is happening, fed by /dashboard/data, /dashboard/history
and the same /admin that programs use.

The page is static files (gateway/static.py), which anybody may load; every number is behind the
gate of /admin. Where that asks for a key, the page asks its reader, keeps the key for as long as
the tab lives (sessionStorage) and sends it as `Authorization: Bearer`. A cookie was rejected: it
would be sent by other pages' requests, too.

Prompts and answers are not in the data at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response

from engine.contract import Overloaded
from gateway.api.admin_gate import AdminGate
from gateway.dashboard.history import SPANS, Pulse, history_of
from gateway.dashboard.now import summary
from gateway.drain import Drain
from gateway.observe.book import BookFault
from gateway.observe.keeper import Keeper
from gateway.observe.metrics import EngineStates
from gateway.static import SAFE, Files

FOLDER = Path(__file__).resolve().parent / "static"
Span = Literal["15m", "1h", "24h", "7d", "90d"]


def router(
    keeper: Keeper,
    engine: EngineStates,
    pulse: Pulse,
    *,
    drain: Drain,
    gate: AdminGate,
    part: str = "",
    wall: Callable[[], float] = time.time,
) -> APIRouter:
    """`part`: whose numbers they are (parts/ledger.py)."""
    routes = APIRouter(tags=["dashboard"], include_in_schema=False)
    admin = Depends(gate)
    files = Files(FOLDER)

    @routes.get("/dashboard/data")
    async def read_data(_: str = admin) -> Response:
        keeper.rollup.fold()
        return JSONResponse(summary(keeper.rollup, engine, drain, part), headers=SAFE)

    @routes.get("/dashboard/history")
    async def read_history(span: Annotated[Span, Query()] = "15m", _: str = admin) -> Response:
        now = int(wall())
        try:
            found: dict[str, Any] = await keeper.ask(
                lambda book: history_of(book, SPANS[span], now)
            )
        except BookFault as error:
            raise Overloaded(str(error), code="ledger_unavailable", retry_after_s=1.0) from error
        return JSONResponse(found | {"engine": pulse.told(SPANS[span], now)}, headers=SAFE)

    @routes.head("/dashboard")
    @routes.get("/dashboard")
    def read_page() -> Response:
        return files.serve("index.html")

    @routes.head("/dashboard/{name:path}")
    @routes.get("/dashboard/{name:path}")
    def read_file(name: str) -> Response:
        return files.serve(name)

    return routes
