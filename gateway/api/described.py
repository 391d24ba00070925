"""What /openapi.json says of keys and errors, which FastAPI knows nothing of or gets wrong.

It declares a 422 in a shape of its own wherever a route takes input. None is ever sent: what does
not fit is a 400 (gateway/app.py), and every error has OpenAI's shape (gateway/errors.py). Rejected:
`responses=` at each route. The hot paths are no routes of FastAPI's, and what each path may answer
is read here at a glance; a path that is missing here is found by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ANSWERS = (400, 401, 403, 404, 408, 413, 429, 500, 502, 503, 504)
ERRORS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("post", "/v1/chat/completions"): _ANSWERS,
    ("post", "/v1/completions"): _ANSWERS,
    ("post", "/v1/embeddings"): (400, 401, 404, 408, 413, 429, 503),
    ("post", "/v1/feedback"): (400, 401, 404, 408, 413, 429, 503),
    ("get", "/v1/models"): (401, 503),
    ("get", "/v1/models/{name}"): (401, 404, 503),
    ("get", "/healthz"): (),
    ("get", "/readyz"): (),
    ("get", "/metrics"): (401,),
    ("get", "/admin/decisions"): (400, 401),
    ("get", "/admin/decisions/{request_id}"): (401, 404),
    ("get", "/admin/cascade"): (401,),
    ("get", "/admin/cascade/{tenant}/curve"): (401, 404),
    ("get", "/admin/caches"): (400, 401, 503),
    ("post", "/admin/caches/erase"): (400, 401, 503),
    ("get", "/admin/tenants"): (401,),
    ("get", "/admin/tenants/{name}"): (401, 404),
    ("post", "/admin/tenants/{tenant}/keys"): (400, 401, 404, 503),
    ("get", "/admin/keys"): (401, 503),
    ("post", "/admin/keys/{key_id}/rotate"): (400, 401, 503),
    ("delete", "/admin/keys/{key_id}"): (400, 401, 503),
    ("get", "/admin/usage"): (400, 401, 503),
}
"""(method, path) → the statuses of its errors. Any path may also answer 405, 431 and 500."""
_MEANINGS = {
    400: "What was sent cannot be used; the message says what should stand there",
    401: "A key is missing, unknown, expired or revoked",
    403: "The tenant's policy forbids it",
    404: "There is no such model, tenant, answer or request",
    408: "The deadline passed, or the body came too slowly",
    413: "The body is larger than `server.max_body_bytes`",
    429: "A limit or budget of the tenant's is used up",
    500: "The server broke; the message holds the request's id",
    502: "A model elsewhere failed, and its fallbacks did",
    503: "Overloaded, shutting down, or a store is away",
    504: "`only-if-cached` was asked, and it is not",
}
_WAITS = frozenset({429, 503})
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {**_TEXT, "description": "What is wrong, and the remedy"},
                "type": _TEXT,
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
NOT_READY = {
    "type": "object",
    "required": ["status", "problems"],
    "properties": {
        "status": {"const": "unready"},
        "problems": {"type": "object", "additionalProperties": _TEXT},
    },
}
SCHEMES = {
    "TenantKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A tenant's key; a tenant without keys, if there is one, needs none",
    },
    "MetricsKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key whose hash is in [admin] metrics_keys; none with open_metrics",
    },
}


def describe(document: dict[str, Any]) -> None:
    """Put keys and errors into an OpenAPI document, and take out what is never sent."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            replies = operation["responses"]
            replies.pop("422", None)
            for status in ERRORS.get((method, path), ()):
                replies[str(status)] = _reply(status)
            if path.startswith("/v1/"):
                operation["security"] = [{"TenantKey": []}]
    paths = document["paths"]
    paths["/metrics"]["get"]["security"] = [{"MetricsKey": []}, {"AdminKey": []}]
    paths["/readyz"]["get"]["responses"]["503"] = _content("Not ready: why", NOT_READY)
    parts = document["components"]
    parts.setdefault("securitySchemes", {}).update(SCHEMES)
    for never_sent in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(never_sent, None)
    parts["schemas"]["Error"] = ERROR


def _reply(status: int) -> dict[str, Any]:
    reply = _content(_MEANINGS[status], {"$ref": "#/components/schemas/Error"})
    if status in _WAITS:
        reply["headers"] = {
            "Retry-After": {"description": "seconds, where known", "schema": {"type": "integer"}}
        }
    return reply


def _content(meaning: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}
