"""POST /v1/embeddings: vectors of the gateway's own embedder, in OpenAI's shape.

The semantic cache and this endpoint share one thread, and the cache's requests wait in front of an
answer. So all callers here together put at most `ABREAST` texts into its queue at a time, taken in
turn by text and not by request: neither does a large batch hold up a small one. And since one
request may be 2,048 texts, its tokens count to the tenant's `tpm`: by estimate before, as they were
afterwards.
"""

from __future__ import annotations

import asyncio
import base64
import math
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from cascade.price import CHARS_PER_TOKEN
from engine.contract import BadCall, Overloaded, UnknownModel
from gateway.api.desk import Desk, body_of
from gateway.wire.parse import Decoder

PATH = "/v1/embeddings"
ABREAST = 2
MOST_TEXTS = 2048
"""OpenAI's bound on one request."""
MOST_WAITING = 32
"""Requests; more are a 503."""


class EmbeddingsRequest(msgspec.Struct):
    input: str | list[str | int | list[int]]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None


class Refused(Exception):
    """A text that this embedder has no vector for; says why. The caller can mend it."""


class Away(Exception):
    """The embedder cannot be asked now, or not at all; says why."""


class Vectors(Protocol):
    """The embedder, as this endpoint sees it."""

    name: str

    async def ready(self) -> int:
        """The number of dimensions, once it is loaded. Raises Away."""

    async def embed(self, text: str, scope: str) -> tuple[NDArray[np.float32], int]:
        """The vector and the number of tokens. Raises Refused or Away."""


def router(desk: Desk, vectors: Vectors | None) -> APIRouter:
    """`vectors` is None where the embedder's packages are missing."""
    routes = APIRouter(tags=["answers"])
    decoder = Decoder(EmbeddingsRequest)
    queue = _Queue(vectors) if vectors is not None else None

    @routes.post(PATH, summary="Vectors of texts", openapi_extra=body_of(EmbeddingsRequest))
    async def embed(request: Request) -> dict[str, Any]:
        async with desk.admitted(request) as tenant:
            if queue is None:
                raise _missing()
            asked = await desk.read(request, decoder)
            texts = _texts(asked)
            guess = math.ceil(sum(map(len, texts)) / CHARS_PER_TOKEN)
            held = await desk.limits.admit_tokens(tenant.name, guess)
            counted: list[int] = []
            try:
                return await queue.answer(asked, texts, f"embeddings:{tenant.name}", counted)
            finally:
                if held is not None:
                    held.settle(sum(counted))

    return routes


class _Queue:
    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._abreast = asyncio.Semaphore(ABREAST)
        self._inside = 0

    async def answer(
        self, asked: EmbeddingsRequest, texts: list[str], scope: str, counted: list[int]
    ) -> dict[str, Any]:
        """`counted` gets the tokens of each text that was embedded, also where one fails."""
        if asked.model != self._vectors.name:
            raise UnknownModel(
                f"There is no embedding model {asked.model!r} here; there is "
                f"{self._vectors.name!r}.",
                param="model",
                code="model_not_found",
            )
        if self._inside >= MOST_WAITING:
            raise _away("too many requests wait to be embedded")
        self._inside += 1
        try:
            return await self._answer(asked, texts, scope, counted)
        except Away as error:
            raise _away(str(error)) from None
        finally:
            self._inside -= 1

    async def _answer(
        self, asked: EmbeddingsRequest, texts: list[str], scope: str, counted: list[int]
    ) -> dict[str, Any]:
        dimensions = await self._vectors.ready()
        if asked.dimensions not in {None, dimensions}:
            raise BadCall(
                f"dimensions: {self._vectors.name} has {dimensions} and cannot be cut to "
                f"{asked.dimensions}; leave it out.",
                param="dimensions",
                code="invalid_value",
            )
        data = []
        for index, text in enumerate(texts):
            vector, tokens = await self._one(index, text, scope)
            counted.append(tokens)
            shown = _shown(vector, asked.encoding_format)
            data.append({"object": "embedding", "index": index, "embedding": shown})
        usage = dict.fromkeys(("prompt_tokens", "total_tokens"), sum(counted))
        return {"object": "list", "data": data, "model": asked.model, "usage": usage}

    async def _one(self, index: int, text: str, scope: str) -> tuple[NDArray[np.float32], int]:
        try:
            async with self._abreast:
                return await self._vectors.embed(text, scope)
        except Refused as error:
            raise BadCall(
                f"input[{index}]: {error}.", param="input", code="invalid_value"
            ) from None


def _texts(asked: EmbeddingsRequest) -> list[str]:
    given = [asked.input] if isinstance(asked.input, str) else asked.input
    texts = [one for one in given if isinstance(one, str)]
    if len(texts) < len(given):
        raise BadCall(
            "input: token ids belong to another model's tokenizer; send texts (LangChain: "
            "check_embedding_ctx_length=False).",
            param="input",
            code="invalid_value",
        )
    if not texts or len(texts) > MOST_TEXTS or not all(texts):
        raise BadCall(
            f"input: send 1 to {MOST_TEXTS} texts, none of them empty.",
            param="input",
            code="invalid_value",
        )
    return texts


def _shown(vector: NDArray[np.float32], form: str) -> list[float] | str:
    if form == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _away(why: str) -> Overloaded:
    return Overloaded(
        f"The embedder cannot answer now: {why}. Send the request again shortly.",
        code="embedder_away",
        retry_after_s=1.0,
    )


def _missing() -> UnknownModel:
    return UnknownModel(
        "No embedder is installed here; the operator adds one with "
        "`pip install 'sluice-gateway[semantic]'`.",
        param="model",
        code="model_not_found",
    )
