"""One request and its response: what was sent in, what has gone out.

`Exchange` is the only thing that speaks HTTP for the hot paths. It knows whether the head has left,
and therefore whether a failure is a status or an event inside the stream.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine
from typing import Any

from engine.contract import AnswerError, Start, Trail, Usage
from gateway.api.watch import Heartbeat, Watch
from gateway.asgi import JSON, Receive, Scope, Send, respond
from gateway.errors import CLIENT_GONE, Headers, body_of, reply_of
from gateway.settings import Server
from gateway.wire.headers import cache_status, server_timing

EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
STREAM_HEADERS = [EVENT_STREAM, (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
"""The last one asks nginx not to gather a stream before passing it on."""

READ = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"content-length",
        b"sluice-max-error",
        b"sluice-route",
        b"sluice-tags",
        b"traceparent",
        b"x-request-id",
    }
)
"""The request headers that mean something here."""

_ID_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")
_ID_LIMIT = 128


def new_id() -> str:
    """A request's id, as no other gateway will make it and nobody can guess. It does not count: who
    reads his own ids must not learn how much others ask."""
    return secrets.token_hex(10)


class Exchange:
    """Owned by the task that answers the request."""

    __slots__ = (
        "_heartbeat",
        "_pending",
        "_send",
        "_sending",
        "_server",
        "_shown_id",
        "booked",
        "client_id",
        "given",
        "head_sent",
        "id",
        "limits",
        "model",
        "policy",
        "receive",
        "start",
        "started",
        "status",
        "streaming",
        "tenant",
        "trail",
        "usage",
        "watch",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, own_id: str, server: Server
    ) -> None:
        self.started = time.perf_counter()
        self.receive = receive
        self._send = send
        self.given = _read(scope["headers"])
        self.id = own_id
        theirs = self.given.get(b"x-request-id")
        self.client_id = theirs.decode() if theirs and _is_id(theirs) else None
        self._shown_id = theirs if theirs and self.client_id else own_id.encode()
        self._server = server
        self.watch = Watch(receive, asyncio.get_running_loop())
        self._heartbeat: Heartbeat | None = None
        self.tenant = ""
        self.limits: Headers = []
        self.model = ""
        self.policy = b""
        """How `auto` chose, for Sluice-Policy; empty where a model was named."""
        self.trail: Trail | None = None
        self.start: Start | None = None
        self.usage: Usage | None = None
        self.status = 0
        self.streaming = False
        self.head_sent = False
        self.booked = False
        """Whether the ledger's layer has taken this request over."""
        self._pending: list[bytes] = []
        self._sending = False

    # ---------------------------------------------------------------- while it waits

    def before_wait(self) -> Coroutine[Any, Any, None] | None:
        """Called by drive.py whenever this request is about to wait, for whatever it is: bound the
        time, listen for a hang-up, and send what is ready."""
        if self.trail is None:
            self.watch.arm_for_body(self._server.body_timeout_s)
            return None
        assert self.trail.deadline is not None
        self.watch.arm(self.trail.deadline)
        if not self.streaming:
            return None
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self._server.heartbeat_s, self._beat)
        return self.flush() if self._pending and not self._sending else None

    def stop(self) -> None:
        self.watch.stop()
        if self._heartbeat is not None:
            self._heartbeat.stop()

    # ---------------------------------------------------------------- one piece

    async def send_whole(self, body: bytes) -> None:
        self.status = 200
        self.head_sent = True
        await self._send_json(200, self._headers(), body)

    async def _send_json(self, status: int, headers: Headers, body: bytes) -> None:
        """`headers` are ours, and say nothing of the connection."""
        head = {
            "type": "http.response.start",
            "status": status,
            "headers": [JSON, *headers],
            "sluice.trusted": len(body),
        }
        await self._send(head)
        await self._send({"type": "http.response.body", "body": body})

    async def send_error(self, error: AnswerError) -> None:
        """As a status, or as the last event of a stream that has begun; to nobody if they left."""
        if error.status == CLIENT_GONE:
            self.status = CLIENT_GONE
            return
        if self.head_sent:
            self.status = error.status
            self.put(b"data: " + body_of(error) + b"\n\n")
            await self.flush(last=True)
            return
        reply = reply_of(error)
        self.status = reply.status
        self.head_sent = True
        headers = [*self._story(), *reply.headers]
        if reply.status in {408, 413, 503}:
            # A body may still be on its way; what follows it would be misread.
            headers.append((b"connection", b"close"))
            await respond(self._send, reply.status, reply.body, headers, JSON)
        else:
            await self._send_json(reply.status, headers, reply.body)

    # ---------------------------------------------------------------- in events

    def put(self, chunk: bytes) -> None:
        """Add to what the next `flush` sends."""
        if chunk:
            self._pending.append(chunk)

    async def flush(self, last: bool = False) -> None:
        """Send everything that was put, in one write, after the head if it has not left."""
        self._sending = True
        if not self.head_sent:
            self.head_sent = True
            self.status = 200
            head = {
                "type": "http.response.start",
                "status": 200,
                "headers": [*STREAM_HEADERS, *self._headers()],
                "sluice.trusted": None,
            }
            await self._send(head)
        body = b"".join(self._pending)
        self._pending.clear()
        if last:
            self.stop()
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        self._sending = False
        if self._heartbeat is not None:
            self._heartbeat.wrote()

    async def _beat(self) -> None:
        """A comment on a silent stream. Before the head nothing can be said, and while something
        is being sent nothing needs to be."""
        if self.head_sent and not self._sending:
            self.put(b": waiting\n\n")
            await self.flush()

    # ---------------------------------------------------------------- headers

    def _headers(self) -> Headers:
        """The head of an answer: who answered, from where, how old, how long it took."""
        headers = self._story()
        if self.start is not None:
            headers.append((b"sluice-origin", _safe(self.start.origin)))
            headers.append((b"sluice-model", _safe(self.start.model)))
        if self.policy:
            headers.append((b"sluice-policy", self.policy))
        return headers

    def _story(self) -> Headers:
        headers = [(b"x-request-id", self._shown_id), *self.limits]
        trail = self.trail
        if trail is None:
            return headers
        trail.span("total", self.started)
        headers.append((b"server-timing", server_timing(trail.spans_ms)))
        if trail.cache:
            headers.append((b"cache-status", cache_status(trail.cache)))
        if trail.age_s is not None:
            headers.append((b"age", b"%d" % int(trail.age_s)))
        return headers


def _read(headers: Headers) -> dict[bytes, bytes]:
    """What was sent of `READ`. A header in several lines is one list (RFC 9110)."""
    given: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in READ:
            given[name] = value if name not in given else given[name] + b", " + value
    return given


def _safe(name: str) -> bytes:
    """A name as a header's value. One that a remote server made up may hold anything."""
    return (
        name.encode()
        if name.isascii() and name.isprintable()
        else repr(name).encode("ascii", "replace")
    )


def _is_id(text: bytes) -> bool:
    return len(text) <= _ID_LIMIT and _ID_BYTES.issuperset(text)
