"""GET /docs: the API, to read and to try, by Swagger UI.

FastAPI's own page loads Swagger UI from a server elsewhere, at whatever version that gives out, and
would run it where the dashboard keeps the admin's key. This one is served from here, under the
dashboard's policy, and works without the Internet.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from gateway.static import SAFE, Files

FOLDER = Path(__file__).resolve().parent / "docs_static"
POLICY = "content-security-policy"
HEADERS = SAFE | {POLICY: SAFE[POLICY].replace("img-src 'self'", "img-src 'self' data:")}
"""Its style sheet has small pictures within."""


def router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    files = Files(FOLDER, HEADERS)

    @routes.head("/docs")
    @routes.get("/docs")
    def read_page() -> Response:
        return files.serve("index.html")

    @routes.head("/docs/{name:path}")
    @routes.get("/docs/{name:path}")
    def read_file(name: str) -> Response:
        return files.serve(name)

    return routes
