"""The server that bench/gateway_semantic.py measures: all layers on, a model that answers at once.

    python -m bench.gateway_semantic_server PORT HOME off|fill|on [REDIS_URL [PAUSE_S]]

`fill` has an embedder that draws vectors instead of computing them, and keeps what it is asked in
HOME; `on` finds that there and has the real one. With REDIS_URL both caches are kept there
(bench/redis.py). PAUSE_S is what the model takes for each of its pieces.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.gateway_answers import PIECES
from bench.gateway_server import settings_on
from cache.embed import BUNDLED, Encoder, OnnxEncoder, Vector, prepare
from gateway.assemble import assemble
from gateway.backend import PlainBackend
from gateway.catalog import ModelCard
from gateway.configure import Loaded
from gateway.observe.logs import LineWriter, build_log
from gateway.parts.embedding import Embedding
from gateway.server import build_server, run
from gateway.settings import SemanticCache, Settings
from tests.support.fake import FakeModel

EMBEDDERS = Path(".cache/embedders")
MANY = 10_000_000


class Drawn:
    """Unit vectors by the checksum of the text without spaces at its end, under the name of the
    real embedder."""

    def __init__(self, real: OnnxEncoder) -> None:
        self.fingerprint = real.fingerprint
        self.dimensions = real.dimensions

    def encode(self, text: str) -> Vector:
        drawn = np.random.default_rng(zlib.crc32(text.rstrip().encode())).standard_normal(
            self.dimensions
        )
        unit: Vector = (drawn / np.linalg.norm(drawn)).astype(np.float32)
        return unit

    def tokens(self, text: str) -> int:
        return len(text.split())


def semantic_in(store: str, mode: str) -> SemanticCache:
    return SemanticCache(
        enabled=mode != "off",
        store=store,
        max_bytes=64 << 30,
        scope_bytes=32 << 30,
        memory_bytes=64 << 30,
        policy="static",
        threshold=0.8 if mode == "on" else 0.99,
        max_entries=MANY,
        max_per_user=MANY,
        max_namespaces=MANY,
        total_namespaces=MANY,
    )


def serve(settings: Settings, mode: str, pause_s: float) -> None:
    def make(_: threading.Event) -> Encoder:
        real = OnnxEncoder(prepare(BUNDLED, EMBEDDERS))
        return Drawn(real) if mode == "fill" else real

    fakes = {
        name: FakeModel(lambda _: PIECES, name=name, keep=False, pause_s=pause_s)
        for name in settings.models
    }
    cards = {name: ModelCard(name, "0" * 64, 8192, 0.5, 2.0) for name in fakes}
    with tempfile.TemporaryFile() as sink:
        writer = LineWriter(sink)
        log = build_log(writer, "info", as_json=True)
        embedding = Embedding(BUNDLED, make, log)
        system = assemble(Loaded(settings), PlainBackend(fakes, cards), log, embedding)
        run(build_server(system.app, settings.server, system.drain, log))
        writer.close()


if __name__ == "__main__":
    port, home, mode, url, pause_s = [*sys.argv[1:], *("", "0")[len(sys.argv) - 4 :]]
    plain = settings_on(int(port), url or "memory://", 64 << 20, home)
    store = url or f"sqlite:///{home}/semantic.db"
    serve(replace(plain, semantic=semantic_in(store, mode)), mode, float(pause_s))
