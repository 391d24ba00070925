"""[cache.semantic] embedder → the one embedder of this process: for the semantic cache, for the
cascade and for /v1/embeddings.

It is there at once and loads in the background: turning a model into an ONNX graph takes some 15 s,
once, and a gateway does not start later for that. Until it is ready `embed` raises NotReady; the
semantic cache says "bypass" then, and goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np

from cache.embed import (
    Embedder,
    EmbedError,
    Encoder,
    NotReady,
    OnnxEncoder,
    TextForeign,
    TextTooLong,
    Vector,
    exported,
    prepare,
)
from cascade.cascade import Embed
from cascade.features import question
from cascade.looks import EmbedMany
from engine.contract import Call
from gateway.api.embeddings import Away, Refused
from gateway.observe.logs import Log
from gateway.settings import SemanticCache

PATIENCE_S = 60.0
"""How long a caller of /v1/embeddings waits while the embedder is being made."""


class Embedding:
    """The embedder and its life. Owned by gateway/assemble.py's lifespan."""

    def __init__(self, name: str, make: Callable[[threading.Event], Encoder], log: Log) -> None:
        """`make` is called on the embedder's thread, and gives up when the event is set."""
        self.name = name
        self.embedder = Embedder()
        self._make = make
        self._log = log
        self._stopped = threading.Event()
        self._loading: asyncio.Task[None] | None = None

    async def ready(self) -> Embedder:
        """The embedder, loaded: begun now if nobody has. Whoever stops waiting stops only that.
        It may still be unusable; `embed` says why."""
        await asyncio.shield(self.begin())
        return self.embedder

    def begin(self) -> asyncio.Task[None]:
        """Load in the background, unless that has begun."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(), name="load-embedder")
        return self._loading

    async def _load(self) -> None:
        try:
            await self.embedder.load(lambda: self._make(self._stopped))
        except Exception as error:  # noqa: BLE001  whatever it is, the gateway serves without
            if self._stopped.is_set():
                return
            self._log.warning("embedder unusable", embedder=self.name, why=str(error))
            return
        self._log.info("embedder ready", embedder=self.name, dimensions=self.embedder.dimensions)

    async def stop(self) -> None:
        self._stopped.set()
        if self._loading is not None:
            await self._loading
        self.embedder.close()


class OwnVectors:
    """The embedder as /v1/embeddings asks it (gateway/api/embeddings.py)."""

    def __init__(self, embedding: Embedding) -> None:
        self.name = embedding.name
        self._embedding = embedding

    async def ready(self) -> int:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return (await self._embedding.ready()).dimensions
        except (TimeoutError, NotReady):
            raise Away(self._embedding.embedder.problem) from None

    async def embed(self, text: str, scope: str) -> tuple[Vector, int]:
        embedder = self._embedding.embedder
        try:
            vector = await embedder.embed(text, scope)
        except (TextTooLong, TextForeign) as error:
            raise Refused(str(error)) from None
        except EmbedError as error:
            raise Away(str(error)) from None
        return vector, embedder.encoder.tokens(text)


def build_embedding(settings: SemanticCache, log: Log) -> Embedding:
    """The configured embedder, not yet loaded."""

    def make(stopped: threading.Event) -> Encoder:
        return OnnxEncoder(prepare(settings.embedder, settings.embedder_dir, stopped=stopped))

    return Embedding(settings.embedder, make, log)


def fingerprint_of(settings: SemanticCache) -> str:
    """Of the configured embedder; empty where it has not been made yet."""
    made = exported(settings.embedder, settings.embedder_dir)
    return made.fingerprint if made is not None else ""


def call_vectors(embedding: Embedding) -> Embed:
    """The vector of what a call asks, the same that the semantic cache looks up: made once for
    both. None for a text that has none, and until the embedder is loaded, which begins here."""

    async def embed(call: Call) -> Vector | None:
        embedding.begin()
        try:
            return await embedding.embedder.embed(question(call), call.scope)
        except EmbedError:
            return None

    return embed


def many_vectors(settings: SemanticCache) -> tuple[str, EmbedMany]:
    """Without a gateway: (the embedder's fingerprint, what embeds). Raises ModelUnusable."""
    encoder = OnnxEncoder(prepare(settings.embedder, settings.embedder_dir))

    def one(call: Call) -> Vector:
        try:
            return encoder.encode(question(call))
        except EmbedError:
            return np.full(encoder.dimensions, np.nan, dtype=np.float32)

    return encoder.fingerprint, lambda calls: np.array([one(call) for call in calls])
