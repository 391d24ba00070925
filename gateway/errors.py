"""From an exception to a status and an OpenAI-shaped body.

    engine.contract.AnswerError      (the answer's own errors, see there)
    ├── Unauthenticated      401  no key, or one that nobody has
    ├── NoSuchPath           404
    ├── WrongMethod          405
    ├── BodyTooSlow          408  the body did not arrive in time
    ├── BodyTooLarge         413
    ├── HeadTooLarge         431
    └── Draining             503  the server is shutting down

Anything else that reaches the edge is our mistake: the caller reads "we broke" and the request's
id, the log has the trace, and nothing of either leaks into the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import orjson

from engine.contract import AnswerError, Failed, Overloaded

Headers = list[tuple[bytes, bytes]]

CLIENT_GONE = 499
"""Not sent to anyone: what the log says when the client hung up first (nginx's number)."""


class Unauthenticated(AnswerError):
    status = 401
    kind = "authentication_error"


class NoSuchPath(AnswerError):
    status = 404
    kind = "invalid_request_error"


class WrongMethod(AnswerError):
    status = 405
    kind = "invalid_request_error"


class BodyTooSlow(AnswerError):
    status = 408
    kind = "timeout_error"


class BodyTooLarge(AnswerError):
    status = 413
    kind = "invalid_request_error"


class HeadTooLarge(AnswerError):
    status = 431
    kind = "invalid_request_error"


class Draining(Overloaded):
    """The server finishes what it has and takes nothing new."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    status: int
    body: bytes
    headers: Headers


def body_of(error: AnswerError) -> bytes:
    """OpenAI's error object, as bytes."""
    inner = {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.code,
    }
    return orjson.dumps({"error": inner})


def reply_of(error: AnswerError) -> ErrorReply:
    """Status, body and the headers that belong to this error alone."""
    headers: Headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return ErrorReply(error.status, body_of(error), headers)


def our_mistake(request_id: str) -> AnswerError:
    """What the caller reads when we broke."""
    return Failed(
        f"The server broke while answering; the request may be sent again. If it keeps failing, "
        f"report request id {request_id}.",
        code="internal_error",
    )
