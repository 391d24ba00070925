"""Reference for bench/gateway.py: the same work as a Starlette route."""

from __future__ import annotations

import sys

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.gateway_answers import Reference
from bench.gateway_asgi import serve


def build(reference: Reference) -> Starlette:
    async def chat(request: Request) -> Response:
        answer, kind = reference.answer(await request.body())
        return Response(answer, media_type=kind.decode())

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


if __name__ == "__main__":
    serve(build(Reference()), int(sys.argv[1]))
