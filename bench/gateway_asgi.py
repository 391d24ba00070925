"""Reference for bench/gateway.py: a bare ASGI application."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from bench.gateway_answers import Reference


def build(reference: Reference) -> Any:
    async def app(_: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        answer, kind = reference.answer(body or b"{}")
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def serve(app: Any, port: int) -> None:
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", ws="none", access_log=False,
                log_level="warning", lifespan="off", proxy_headers=False)  # fmt: skip


if __name__ == "__main__":
    serve(build(Reference()), int(sys.argv[1]))
