"""A policy that looks at the embedding, in an assembled gateway with an embedder of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.embed import place_of
from cascade.calibrate import Aim, calibrate
from cascade.features import question
from cascade.policy import write_policy
from cascade.promise import Promise
from cascade.routes.learned import Quality
from engine.contract import Call
from gateway.parts.policies import policy_path, weights_of
from gateway.settings import Cascade, SemanticCache, Settings
from tests.support.embedders import embedding_of
from tests.support.encoders import BagEncoder, bag_vector
from tests.support.labelled import labelled
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import PATIENCE_S

PRICES = {"small": (0.1, 0.1), "large": (1.0, 1.0)}


def embed(calls: Sequence[Call]) -> NDArray[np.float32]:
    return np.array([bag_vector(question(call)) for call in calls])


@pytest.fixture(scope="module")
def route() -> Quality:
    """Calibrated without a judge: what is code goes to the large model."""
    rows = [replace(row, answer=None) for row in labelled(900)]
    return calibrate(rows, Aim(Promise(0.1), embedder="bag"), embed=embed).route


@pytest.fixture
def settings(route: Quality, tmp_path: Path) -> Settings:
    weights = weights_of("small" * 8, "large" * 8)
    policy_path(tmp_path, "default").write_text(write_policy("default", weights, route))
    semantic = SemanticCache(enabled=False, embedder="words", embedder_dir=tmp_path)
    return settings_for_tests(cascade=Cascade(folder=tmp_path, target=0.1), semantic=semantic)


def made(settings: Settings) -> None:
    """As if the embedder had been exported."""
    folder = place_of("words", settings.semantic.embedder_dir)
    folder.mkdir()
    told = {"window": 100, "dimensions": 64, "precision": "float32", "fingerprint": "bag"}
    (folder / "model.json").write_text(json.dumps(told))


async def origin(running: Running, text: str) -> str:
    asked = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    reply = await running.client.post("/v1/chat/completions", json=asked)
    return str(reply.headers["sluice-origin"])


async def test_the_meaning_decides_once_the_embedder_is_there(settings: Settings) -> None:
    made(settings)
    encoder = BagEncoder()
    async with serving(settings, prices=PRICES, embedding=embedding_of(encoder)) as running:
        assert await origin(running, "What is number 7?") == "large", "not loaded yet: safe"
        await asyncio.wait_for(running.system.meaning.embedding.ready(), PATIENCE_S)
        assert await origin(running, "What is number 8?") == "small"
        assert await origin(running, "Mend number 9: ```x```") == "large"
        assert await origin(running, "word " * 150) == "large", "too long to have a vector"
    assert "What is number 8?" in encoder.encoded


async def test_without_its_embedder_the_policy_does_not_fit(settings: Settings) -> None:
    async with serving(settings, prices=PRICES) as running:
        (told,) = (await running.client.get("/admin/cascade")).json()["tenants"]
        assert not told["calibrated"]
        assert "needs the embedder bag" in told["passed_over"][0]
