"""The life of one request at the edge, for every endpoint that answers with a model.

    authenticate → take the body in → limits → parse → resolve → answer → respond → log

A plain ASGI application and not a FastAPI route. Measured in process, answering nothing: called by
its path 1 µs; as a Starlette route inside FastAPI's middleware 20 µs; as a FastAPI route that takes
the request 115 µs, or a pydantic model 142 µs. An exact hit costs 43 µs here in all. FastAPI serves
the cold paths and the documentation (gateway/app.py).

Who is over a limit of requests is refused before the body is parsed, and what cannot be parsed has
counted: a flood costs us as little as a refusal can, and is bounded when it is of nonsense, too.
Refusing before the body is in would save nothing more (it has come with its head) and would end the
connection, since what follows would be read as the next request.

Whatever goes wrong ends in one place (`__call__`), as an OpenAI-shaped error with a status or, once
the stream has begun, as its last event. A caller who hangs up is noticed while we wait, for whole
answers and streams alike, and closing the answer carries that inwards to the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import msgspec

from engine.contract import Answer, Answerer, AnswerError, Call, End, Failed, Json, Start, Trail
from gateway.api.body import check_length, read_body
from gateway.api.drive import drive
from gateway.api.exchange import Exchange, new_id
from gateway.api.fanout import answer_all
from gateway.asgi import Receive, Scope, Send
from gateway.catalog import Catalog, Place, is_alone, scope_of
from gateway.drain import Drain
from gateway.errors import our_mistake
from gateway.observe.ledger import Ledger, refusal
from gateway.observe.logs import Log
from gateway.settings import Server, Tenant
from gateway.tenants.keys import Keys
from gateway.tenants.limits import Limits
from gateway.verify.rules import AUTO
from gateway.wire.collect import collect
from gateway.wire.headers import (
    directives_of,
    labels_of,
    server_timing,
    tags_of,
    traceparent_of,
)
from gateway.wire.render import DONE, ChunkWriter, Look, Surface, whole

LAST_WORDS_S = 5.0
"""How long a caller who does not read may hold up the news that its request has failed."""
FLUSH_BYTES = 64 * 1024
"""A burst larger than this is sent in pieces, so that a slow reader costs no more than that."""


class Asked(msgspec.Struct, frozen=True):
    """A parsed request. `calls` makes its Calls once it is known where they are answered; there
    are several only for text prompts."""

    model: str
    max_tokens: int | None
    extra: Json | None
    calls: Callable[[Place], tuple[Call, ...]]
    surface: Surface
    stream: bool
    include_usage: bool
    user: str | None


Parse = Callable[[bytes], Asked]
ParseAgain = Callable[[str, bytes], Asked]
"""With the tenant's name."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What every endpoint shares. Built once by gateway/assemble.py."""

    server: Server
    keys: Keys
    limits: Limits
    catalog: Catalog
    answerer: Answerer
    ledger: Ledger
    drain: Drain
    log: Log
    policies: Mapping[str, bytes]
    """Tenant → the Sluice-Policy header of `auto`'s answers."""


class Endpoint:
    """POST on one path."""

    def __init__(self, edge: Edge, parse: Parse, parse_again: ParseAgain) -> None:
        """`parse_again` is `parse` with a memory (api/again.py)."""
        self._edge = edge
        self._parse = parse
        self._parse_again = parse_again

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        edge = self._edge
        exchange = Exchange(scope, receive, send, own_id=new_id(), server=edge.server)
        watch = exchange.watch
        try:
            edge.drain.enter(watch)
            await drive(self._serve(exchange), exchange.before_wait)
        except AnswerError as error:
            await self._fail(exchange, error)
        except asyncio.CancelledError:
            reason = watch.absorb()
            if reason is None:
                raise
            await self._fail(exchange, reason)
        except Exception:
            edge.log.error("request broke", id=exchange.id, exc_info=True)
            await self._fail(exchange, our_mistake(exchange.id))
        finally:
            exchange.stop()
            edge.drain.leave(watch)
            _log(edge.log, exchange)

    async def _serve(self, exchange: Exchange) -> None:
        """The whole way of a request that goes well."""
        edge, given = self._edge, exchange.given
        tenant = edge.keys.tenant(given.get(b"authorization"))
        exchange.tenant = tenant.name
        edge.drain.belong(exchange.watch, tenant.name)
        check_length(given.get(b"content-length"), edge.server.max_body_bytes)
        body = await read_body(exchange.receive, edge.server.max_body_bytes)
        limited = edge.limits.watches(tenant.name)
        if limited:
            await edge.limits.admit(tenant.name)
        try:
            await self._answer(exchange, tenant, body)
        finally:
            if limited:
                edge.limits.leave(tenant.name)

    async def _answer(self, exchange: Exchange, tenant: Tenant, body: bytes) -> None:
        """Of a request that may be read."""
        edge, given = self._edge, exchange.given
        remembered = b"cache-control" not in given
        asked = self._parse_again(tenant.name, body) if remembered else self._parse(body)
        trail = self._trail(exchange, tenant, asked.user)
        trail.whole = not asked.stream
        calls = asked.calls(self._place(exchange, asked, tenant, trail))
        first = calls[0]
        if first.model == AUTO:
            exchange.policy = edge.policies.get(tenant.name, b"")
        exchange.model = first.model
        look = Look(first.fingerprint, first.n * len(calls), first.logprobs, asked.include_usage)
        exchange.booked = True
        answer = answer_all(edge.answerer, calls, trail)
        if asked.stream:
            await self._stream(exchange, answer, ChunkWriter(asked.surface, look), trail)
        else:
            await self._whole(exchange, answer, asked.surface, look, trail)

    def _trail(self, exchange: Exchange, tenant: Tenant, user: str | None) -> Trail:
        given = exchange.given
        trail = Trail(
            id=exchange.id,
            tenant=tenant.name,
            user=user or "",
            share=tenant.share,
            deadline=time.monotonic() + self._edge.server.request_timeout_s,
            directives=directives_of(given.get(b"cache-control"), given.get(b"sluice-max-error")),
            tags=tags_of(given.get(b"sluice-tags")),
            traceparent=traceparent_of(given.get(b"traceparent")),
            client_id=exchange.client_id or "",
        )
        exchange.trail = trail
        return trail

    def _place(self, exchange: Exchange, asked: Asked, tenant: Tenant, trail: Trail) -> Place:
        """Model, scope and clamps. Who keeps users apart and does not name one shares nothing."""
        scope = scope_of(tenant, asked.user, exchange.id)
        if is_alone(scope):
            trail.directives = replace(trail.directives, no_store=True)
        trail.tags = labels_of(trail.tags, tenant.name, trail.user, scope)
        route = exchange.given.get(b"sluice-route")
        model = route.decode("latin-1") if route else asked.model
        return self._edge.catalog.place(
            model, asked.max_tokens, asked.extra, tenant, scope, routed=route is not None
        )

    async def _whole(
        self, exchange: Exchange, answer: Answer, surface: Surface, look: Look, trail: Trail
    ) -> None:
        collected = await collect(answer)
        exchange.start, exchange.usage = collected.start, collected.usage
        exchange.limits = self._edge.limits.headers(trail.tenant)
        await exchange.send_whole(whole(surface, collected, look))

    async def _stream(
        self, exchange: Exchange, answer: Answer, writer: ChunkWriter, trail: Trail
    ) -> None:
        exchange.streaming = True
        await self._pump(exchange, answer, writer, trail)
        exchange.put(b": Server-Timing: " + server_timing(trail.spans_ms) + b"\n\n" + DONE)
        await exchange.flush(last=True)

    async def _pump(
        self, exchange: Exchange, answer: Answer, writer: ChunkWriter, trail: Trail
    ) -> None:
        """Events to bytes. Sending happens whenever the answer makes us wait (drive.py)."""
        size = 0
        try:
            async for event in answer:
                kind = event.__class__
                if kind is Start:
                    exchange.start = event  # type: ignore[assignment]
                    exchange.limits = self._edge.limits.headers(trail.tenant)
                elif kind is End:
                    exchange.usage = event.usage  # type: ignore[union-attr]
                chunk = writer.write(event)
                exchange.put(chunk)
                size += len(chunk)
                if size > FLUSH_BYTES:
                    size = 0
                    await exchange.flush()
        finally:
            await answer.aclose()
        if exchange.usage is None:
            raise Failed("The answer was cut before its end; send it again.", code="answer_cut")
        trail.span("total", exchange.started)

    async def _fail(self, exchange: Exchange, error: AnswerError) -> None:
        """Book what the ledger's layer has not seen, and tell the caller, if they listen."""
        cause = error.__cause__
        if error.status >= 500 and cause is not None and not isinstance(cause, AnswerError):
            self._edge.log.error("request broke", id=exchange.id, exc_info=cause)
        if not exchange.booked:
            self._edge.ledger.append(
                refusal(
                    exchange.id,
                    exchange.tenant,
                    exchange.model,
                    error.status,
                    exchange.client_id or "",
                )
            )
        if exchange.tenant:
            exchange.limits = self._edge.limits.headers(exchange.tenant)
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await exchange.send_error(error)
        except TimeoutError:
            self._edge.log.warning("reader too slow for an error", id=exchange.id)


def _log(log: Log, exchange: Exchange) -> None:
    """The access line: names and numbers, no content."""
    start, usage = exchange.start, exchange.usage
    log.info(
        "request",
        id=exchange.id,
        client_id=exchange.client_id,
        tenant=exchange.tenant,
        model=start.model if start else None,
        origin=start.origin if start else None,
        status=exchange.status,
        stream=exchange.streaming,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        ms=round((time.perf_counter() - exchange.started) * 1e3, 3),
    )
