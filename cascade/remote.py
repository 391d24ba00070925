"""A model behind any OpenAI-compatible server, as an answerer.

    place → send → head → first chunk ─▸ Start ─▸ Delta* ─▸ Finish ─▸ End
    └──────── retried, while safe ───────┘

Start, the commit point, waits for the first chunk that can be read and not only for the status:
many servers send 200 and then an error as the first event, and until then another try or another
upstream can still answer. Time-outs are by phase (connect, first byte, between bytes), the whole is
bounded by the caller's deadline. The stream is read without re-chunking: one event of theirs is one
of ours.

The transport is used directly, without httpx's client around it: that saves cookies, redirects
(which are refused anyway: a redirect could leave the checked address) and two thirds of the time.
HTTP/1.1 is spoken by http1.py, whose calls cost a small part of httpx's own (`open_transport`).

An answer that is cut is told as `Trail.cut` wants it: by the server's counts where it has sent
some, else by estimate. A request that was sent and given up before anything came took its prompt's
tokens; one that was refused, or that never left, took nothing.

Secrets come from the environment only, and an error's text is searched for the key before it
leaves. A hang-up closes the response, which closes the connection, which is how the server hears of
it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import get_args

import httpx

from cascade.address import Addresses, AddressRefused
from cascade.guard import Backoff, Breaker
from cascade.http1 import Whole
from cascade.openai_wire import request_body, usage_of
from cascade.reply import (
    Again,
    ErrorKind,
    Reply,
    Told,
    error_of,
    error_text,
    read_at_most,
    retry_after_s,
)
from engine.contract import (
    Answer,
    AnswerError,
    BadCall,
    Call,
    DeadlineExceeded,
    End,
    Overloaded,
    Start,
    Trail,
    UpstreamFailed,
)

MAX_ERROR_BYTES = 65_536
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_CALLERS = frozenset({400, 413, 415, 422})
ERRORS: tuple[ErrorKind, ...] = get_args(ErrorKind)


class SecretMissing(ValueError):
    """The environment variable that should hold the key is not set."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One remote model. `name` is ours (origin, model, in the ledger), `model` is theirs."""

    name: str
    model: str
    api_key: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 120.0
    between_bytes_timeout_s: float = 60.0
    max_tokens_field: str = "max_tokens"
    """OpenAI's newest models take max_completion_tokens only."""
    bounded: bool = False
    """Whether its context is known, which bounds its answers: it is not told `Call.longest`, which
    a server may take for more than what its prompt leaves."""


class _Unheard(Exception):
    """Time was up before the first chunk, whatever the server has computed by then."""

    def __init__(self, error: AnswerError) -> None:
        super().__init__(error.message)
        self.error = error


def secret(variable: str, environ: Mapping[str, str]) -> str:
    """The key that `variable` holds. Settings name variables and never hold keys."""
    found = environ.get(variable, "").strip()
    if not found:
        raise SecretMissing(f"the environment variable {variable} is not set; put the key there")
    return found


class Remote:
    """Holds the breaker's state; everything else belongs to one answer."""

    def __init__(
        self,
        upstream: Upstream,
        addresses: Addresses,
        transport: httpx.AsyncBaseTransport,
        *,
        breaker: Breaker,
        backoff: Backoff,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._upstream = upstream
        self._addresses = addresses
        self._transport = transport
        self._breaker = breaker
        self._backoff = backoff
        self._now = now
        self._headers = _headers(upstream)
        self.errors: dict[str, int] = dict.fromkeys(ERRORS, 0)
        """Tries that failed, by kind. What the caller did wrong is none."""

    @property
    def breaker(self) -> Breaker:
        return self._breaker

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        name, told, ended = self._upstream.name, Told(call), False
        reply = await self._begin(call, trail)
        try:
            async with aclosing(reply):
                yield Start(trail.id, reply.created or int(self._now()), name, name)
                async for chunk in reply.chunks(self._upstream.between_bytes_timeout_s):
                    if chunk.error is not None:
                        raise self._failed(f"broke off: {error_text(chunk.error)}")
                    for event in reply.events_in(chunk, call.n):
                        told.hear(event)
                        yield event
                    if chunk.usage is not None:
                        told.counts = usage_of(chunk.usage) or told.counts
            if told.open_choices:
                raise self._failed("ended its answer in the middle")
            ended = True
            yield End(told.usage())
        finally:
            if not ended:
                trail.cut(name, told.usage(), estimated=told.counts is None)

    async def _begin(self, call: Call, trail: Trail) -> Reply:
        """A reply whose first chunk is there; tells the breaker how that went."""
        started = time.perf_counter()
        if not self._breaker.admit():
            raise Overloaded(
                f"Upstream {self._upstream.name!r} keeps failing and is being left alone for a "
                "moment; try again.",
                retry_after_s=self._breaker.reopens_in_s,
            )
        settled = False
        try:
            reply = await self._open(call, trail)
            self._breaker.succeeded()
            settled = True
        except AnswerError as error:
            settled = True
            self._settle(error)
            raise
        finally:
            if not settled:
                self._breaker.abandoned()
        trail.span("upstream", started)
        return reply

    def _settle(self, error: AnswerError) -> None:
        if isinstance(error, BadCall):
            self._breaker.succeeded()
        elif isinstance(error, DeadlineExceeded):
            self._breaker.abandoned()
        else:
            self._breaker.failed()

    async def _open(self, call: Call, trail: Trail) -> Reply:
        """The first chunk of an answer, after as many tries as are safe and fit the deadline."""
        kind = "/chat/completions" if call.kind == "chat" else "/completions"
        if call.max_tokens is None and not self._upstream.bounded:
            call = replace(call, max_tokens=call.longest)
        body = request_body(call, self._upstream.model, self._upstream.max_tokens_field)
        tried = 0
        while True:
            tried += 1
            post = Whole(body)
            try:
                return await self._try(kind, post, trail)
            except (asyncio.CancelledError, _Unheard) as given_up:
                if post.sent:
                    trail.cut(self._upstream.name, Told(call).usage(), estimated=True)
                if isinstance(given_up, _Unheard):
                    raise given_up.error from given_up
                raise
            except Again as failure:
                pause_s = self._backoff.pause_s(tried, failure.retry_after_s, trail.remaining_s())
                if pause_s is None:
                    raise failure.error from failure
                await asyncio.sleep(pause_s)

    async def _try(self, path: str, body: Whole, trail: Trail) -> Reply:
        limit_s, by_deadline = self._first_byte_limit(trail)
        try:
            async with asyncio.timeout(limit_s):
                reply = await self._send(path, body, trail)
                try:
                    await reply.first()
                except BaseException:
                    await reply.aclose()
                    raise
                return reply
        except TimeoutError as error:
            if not by_deadline:
                raise _Unheard(self._failed("did not begin to answer in time", "silent")) from error
            late = DeadlineExceeded(
                f"Upstream {self._upstream.name!r} had not begun to answer when the request's "
                "time was up; allow more time."
            )
            raise _Unheard(late) from error
        except AddressRefused as error:
            raise self._failed(f"may not be reached: {error}", "unreachable") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, OSError) as error:
            raise Again(
                self._failed("cannot be reached, or hung up at once", "unreachable")
            ) from error
        except httpx.TimeoutException as error:
            raise _Unheard(self._failed("went silent before its answer", "silent")) from error
        except httpx.HTTPError as error:
            raise Again(self._failed("broke the connection off")) from error

    def _first_byte_limit(self, trail: Trail) -> tuple[float, bool]:
        remaining_s, limit_s = trail.remaining_s(), self._upstream.first_byte_timeout_s
        if remaining_s is not None and remaining_s < limit_s:
            return remaining_s, True
        return limit_s, False

    async def _send(self, path: str, body: Whole, trail: Trail) -> Reply:
        place = await self._addresses.place(path)
        upstream = self._upstream
        traced = [("traceparent", trail.traceparent)] if trail.traceparent else []
        slowest_s = max(upstream.first_byte_timeout_s, upstream.between_bytes_timeout_s)
        request = httpx.Request(
            "POST",
            place.url,
            headers=[
                ("host", place.host),
                *self._headers,
                ("content-length", str(len(body.data))),
                *traced,
            ],
            stream=body,
            extensions={
                "timeout": {
                    "connect": upstream.connect_timeout_s,
                    "read": slowest_s,
                    "write": slowest_s,
                    "pool": upstream.connect_timeout_s,
                },
                "sni_hostname": place.name,
            },
        )
        response = await self._transport.handle_async_request(request)
        if response.status_code != 200:
            raise await self._refusal(response)
        return Reply(response, self._failed)

    async def _refusal(self, response: httpx.Response) -> Exception:
        """What another status than 200 means for the caller."""
        try:
            raw = await read_at_most(response, MAX_ERROR_BYTES)
        finally:
            await response.aclose()
        status, said = response.status_code, error_of(raw)
        message = self._redacted(str(said.get("message") or "no reason was given"))
        pause_s = retry_after_s(response.headers.get("retry-after"))
        if status in _CALLERS:
            param, code = said.get("param"), said.get("code")
            return BadCall(
                f"Upstream {self._upstream.name!r} refused the request: {message}",
                param=param if isinstance(param, str) else None,
                code=code if isinstance(code, str) else None,
            )
        if status in {401, 403}:
            return self._failed(f"refused our key; check its api_key_env ({message})", "refused")
        if status == 404:
            told = f"has no model {self._upstream.model!r}; check it ({message})"
            return self._failed(told, "refused")
        if status in {429, 503, 529}:
            self.errors["full"] += 1
            full = Overloaded(
                f"Upstream {self._upstream.name!r} is full: {message} Try again later.",
                retry_after_s=pause_s,
            )
            return Again(full, pause_s)
        failed = self._failed(f"answered {status}: {message}", "status")
        return Again(failed, pause_s) if status in _AGAIN else failed

    def _failed(self, what: str, kind: ErrorKind = "broken") -> UpstreamFailed:
        """One more error of the upstream, counted and in words."""
        self.errors[kind] += 1
        name, said = self._upstream.name, self._redacted(what)
        return UpstreamFailed(f"Upstream {name!r} {said}. The request may be retried.")

    def _redacted(self, text: str) -> str:
        key = self._upstream.api_key
        return text.replace(key, "…") if key else text


def _headers(upstream: Upstream) -> list[tuple[str, str]]:
    headers = [
        ("content-type", "application/json"),
        ("accept", "text/event-stream"),
        ("accept-encoding", "identity"),
        ("user-agent", "sluice"),
        *upstream.headers,
    ]
    if upstream.api_key:
        headers.append(("authorization", f"Bearer {upstream.api_key}"))
    return headers
