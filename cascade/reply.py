"""One response of an upstream, read chunk by chunk; and what its refusals say.

Whatever a server sends after status 200 is read here: server-sent events, or one JSON document from
a server that ignores `stream`. What cannot be read is the upstream's failure, worded for the
caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Literal, Protocol

import httpx
import msgspec
import orjson

from cascade.openai_wire import Chunk, events_of, read_chunk
from cascade.price import Heard, estimate_prompt_tokens
from cascade.sse import EventReader, EventTooLarge
from engine.contract import AnswerError, Call, Delta, Finish, UpstreamFailed, Usage

MAX_WHOLE_BYTES = 64 << 20
LAST_BYTES_S = 0.05


ErrorKind = Literal["unreachable", "silent", "broken", "full", "refused", "status"]
"""How an upstream fails: no connection, no bytes in time, an answer that broke off or cannot be
read, no room (429, 503, 529), our key or model unknown there, another status."""


class Failing(Protocol):
    """Makes the upstream's failure of what it did, in words for the caller."""

    def __call__(self, what: str, kind: ErrorKind = "broken") -> UpstreamFailed: ...


class Again(Exception):
    """This try failed in a way that another may not."""

    def __init__(self, error: AnswerError, retry_after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after_s = retry_after_s


class Reply:
    """One response whose status was 200. Closed by whoever got it."""

    def __init__(self, response: httpx.Response, failed: Failing) -> None:
        self._response = response
        self._failed = failed
        self._bytes = response.stream.__aiter__()  # type: ignore[union-attr]
        self._reader = EventReader()
        self._waiting: list[Chunk] = []
        self._done = False
        self._whole = "json" in response.headers.get("content-type", "")

    async def aclose(self) -> None:
        """An answer that was read to its [DONE] is read to the end of the body too, which is right
        behind it, so that the connection can be used again; any other is cut."""
        if self._done and not self._whole:
            with suppress(Exception):
                async with asyncio.timeout(LAST_BYTES_S):
                    await anext(self._bytes, None)
        await self._response.aclose()

    @property
    def created(self) -> int | None:
        return self._waiting[0].created if self._waiting else None

    async def first(self) -> None:
        """Waits for the first chunk; raises what an error in its place means."""
        while not self._waiting and not self._done:
            await self._more()
        if not self._waiting:
            raise Again(self._failed("gave an empty answer"))
        if self._waiting[0].error is not None:
            raise Again(self._failed(f"failed: {error_text(self._waiting[0].error)}"))

    async def chunks(self, between_s: float) -> AsyncIterator[Chunk]:
        while True:
            while self._waiting:
                yield self._waiting.pop(0)
            if self._done:
                return
            try:
                async with asyncio.timeout(between_s):
                    await self._more()
            except (TimeoutError, httpx.TimeoutException) as error:
                raise self._failed("went silent in the middle of its answer", "silent") from error
            except (httpx.HTTPError, OSError) as error:
                raise self._failed("broke the connection off") from error

    def events_in(self, chunk: Chunk, choices: int) -> list[Delta | Finish]:
        """Raises UpstreamFailed for log-probabilities of another shape and for a choice that
        nobody asked for."""
        try:
            events = [event for choice in chunk.choices or () for event in events_of(choice)]
        except (AttributeError, TypeError, ValueError) as error:
            raise self._failed("sent log-probabilities that cannot be read") from error
        for event in events:
            if event.index >= choices:
                raise self._failed(f"sent choice {event.index}, and {choices} were asked for")
        return events

    async def _more(self) -> None:
        if self._whole:
            raw = await read_at_most(self._response, MAX_WHOLE_BYTES)
            self._done = True
            self._take([raw])
            return
        try:
            piece = await anext(self._bytes)
        except StopAsyncIteration:
            self._done = True
            self._take(self._reader.close())
            return
        try:
            self._take(self._reader.feed(piece))
        except EventTooLarge as error:
            raise self._failed(f"sent {error}") from error

    def _take(self, events: list[bytes]) -> None:
        for event in events:
            if event == b"[DONE]":
                self._done = True
                return
            try:
                self._waiting.append(read_chunk(event))
            except msgspec.DecodeError as error:
                # Told in its turn: what came before it in the same packet is good.
                self._waiting.append(Chunk(error=f"it sent what cannot be read ({error})"))


class Told:
    """What one answer took, as far as it has been told or heard."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._heard = Heard()
        self.open_choices = set(range(call.n))
        self.counts: Usage | None = None
        """The server's own."""

    def hear(self, event: Delta | Finish) -> None:
        if isinstance(event, Delta):
            self._heard.add(event)
        else:
            self.open_choices.discard(event.index)

    def usage(self) -> Usage:
        if self.counts is not None:
            return self.counts
        prompt, answer = estimate_prompt_tokens(self._call), self._heard.tokens
        return Usage(prompt, answer, 0, prompt + answer)


async def read_at_most(response: httpx.Response, limit: int) -> bytes:
    pieces, size = [], 0
    async for piece in response.stream:  # type: ignore[union-attr]
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            break
    return b"".join(pieces)


def error_of(raw: bytes) -> dict[str, object]:
    """OpenAI's {"error": {...}}, or whatever else a server may send instead."""
    try:
        said = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {"message": raw[:300].decode("utf-8", "replace").strip()}
    inner = said.get("error", said) if isinstance(said, dict) else said
    if isinstance(inner, dict):
        return {**inner, "message": inner.get("message") or inner.get("detail")}
    return {"message": str(inner)[:300]}


def error_text(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error)[:300]
    return str(error)[:300]


def retry_after_s(value: str | None) -> float | None:
    """Seconds; the date form is rare among such servers and counts as unsaid."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
