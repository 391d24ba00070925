"""The HTTP application: hot paths first, FastAPI for everything else.

    Front ── POST /v1/chat/completions, /v1/completions ──► Endpoint (plain ASGI)
       └── any other path ─────────────────────────────────► FastAPI

FastAPI documents the hot paths, too (their shapes come from the decoder's own types), and answers
other methods on them with a 405.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from engine.contract import AnswerError, BadCall
from gateway.api.described import describe
from gateway.asgi import JSON, App, Receive, Scope, Send
from gateway.errors import NoSuchPath, WrongMethod, reply_of

Lifespan = Callable[[], AbstractAsyncContextManager[None]]


class Front:
    """Picks the hot path by its name, in one dict lookup."""

    def __init__(self, hot: Mapping[str, App], cold: App) -> None:
        self._hot = dict(hot)
        self._cold = cold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._hot.get(scope["path"])
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await self._cold(scope, receive, send)


def build_app(
    hot: Mapping[str, App],
    shapes: Mapping[str, type[msgspec.Struct]],
    routers: list[APIRouter],
    lifespan: Lifespan,
) -> Front:
    """The application. `shapes` documents the body of each hot path."""

    @asynccontextmanager
    async def span(_: FastAPI) -> AsyncIterator[None]:
        async with lifespan():
            yield

    cold = FastAPI(title="Sluice", lifespan=span, docs_url=None, redoc_url=None)
    cold.add_exception_handler(AnswerError, _answer_error)
    cold.add_exception_handler(HTTPException, _http_error)
    cold.add_exception_handler(RequestValidationError, _bad_input)
    for router in routers:
        cold.include_router(router)
    for path in hot:
        cold.add_route(
            path, _post_only, methods=["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
        )
    _document(cold, shapes)
    return Front(hot, cold)


async def _post_only(_: Request) -> Response:
    raise HTTPException(405, headers={"allow": "POST"})


def _response(error: AnswerError, more: Mapping[str, str] | None = None) -> Response:
    reply = reply_of(error)
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return Response(
        reply.body, reply.status, {**headers, **(more or {})}, media_type=JSON[1].decode()
    )


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, AnswerError)
    return _response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's 404 and 405 in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow", (error.headers or {}).get("Allow", ""))
        wrong = WrongMethod(f"{path} does not take {method}; use {allowed or 'another method'}.")
        return _response(wrong, {"allow": allowed} if allowed else None)
    return _response(NoSuchPath(f"There is nothing at {path}; see /docs for what there is."))


async def _bad_input(_: Request, error: Exception) -> Response:
    """What does not fit a route's shape, in OpenAI's shape; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    steps = [step for step in first["loc"] if step != "body"]
    named = steps and first["type"] != "json_invalid"  # of which the place is a count of characters
    where = ".".join(map(str, steps)) if named else "body"
    return _response(BadCall(f"{where}: {first['msg']}.", param=where, code="invalid_value"))


def _document(app: FastAPI, shapes: Mapping[str, type[msgspec.Struct]]) -> None:
    """Add the hot paths, keys and errors to the OpenAPI document, made when it is asked for."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        bodies, parts = msgspec.json.schema_components(
            list(shapes.values()), ref_template="#/components/schemas/{name}"
        )
        for (path, shape), body in zip(shapes.items(), bodies, strict=True):
            content = {"application/json": {"schema": body}}
            document["paths"].setdefault(path, {})["post"] = {
                "summary": shape.__name__,
                "tags": ["answers"],
                "requestBody": {"required": True, "content": content},
                "responses": {"200": {"description": "An answer, whole or as an event stream"}},
            }
        document.setdefault("components", {}).setdefault("schemas", {}).update(parts)
        describe(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
