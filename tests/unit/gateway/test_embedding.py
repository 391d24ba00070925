"""The embedder of a gateway is there at once, and ready later."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cache.embed import Encoder, NotReady
from gateway.observe.logs import build_log
from gateway.parts.embedding import Embedding
from tests.support.encoders import BagEncoder
from tests.support.speakers import PATIENCE_S


class Lines:
    """What was logged."""

    def __init__(self) -> None:
        self.text = ""

    def line(self, text: bytes) -> None:
        self.text += text.decode()


class Maker:
    """Makes an encoder when it is let, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.may = threading.Event()
        self.failure = failure
        self.made = 0

    def __call__(self, stopped: threading.Event) -> Encoder:
        self.made += 1
        while not self.may.wait(0.01):
            if stopped.is_set():
                raise RuntimeError("stopped")
        if self.failure is not None:
            raise self.failure
        return BagEncoder()


def embedding_of(maker: Maker) -> tuple[Embedding, Lines]:
    lines = Lines()
    return Embedding("some-model", maker, build_log(lines, "info", as_json=True)), lines  # type: ignore[arg-type]


async def test_until_it_is_loaded_an_embedder_refuses_and_says_why() -> None:
    maker = Maker()
    embedding, _ = embedding_of(maker)
    embedding.begin()
    with pytest.raises(NotReady, match="being prepared"):
        await embedding.embedder.embed("hello", "s")
    maker.may.set()
    embedder = await embedding.ready()
    assert embedder.ready
    assert (await embedder.embed("hello", "s")).shape == (embedder.dimensions,)
    await embedding.stop()


async def test_it_is_loaded_once_however_many_wait() -> None:
    maker = Maker()
    maker.may.set()
    embedding, _ = embedding_of(maker)
    await asyncio.gather(*(embedding.ready() for _ in range(5)))
    assert maker.made == 1
    await embedding.stop()


async def test_one_that_cannot_be_loaded_is_told_and_breaks_nothing() -> None:
    maker = Maker(OSError("no such model"))
    maker.may.set()
    embedding, lines = embedding_of(maker)
    embedder = await embedding.ready()
    with pytest.raises(NotReady, match="no such model"):
        await embedder.embed("hello", "s")
    assert "embedder unusable" in lines.text
    await embedding.stop()


async def test_stopping_does_not_wait_for_a_model_that_is_being_prepared() -> None:
    embedding, lines = embedding_of(Maker())
    embedding.begin()
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        await embedding.stop()
    assert lines.text == ""


async def test_one_that_nobody_used_stops_as_well() -> None:
    embedding, _ = embedding_of(Maker())
    await embedding.stop()
