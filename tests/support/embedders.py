"""The bundled embedder, exported once for all tests of a checkout."""

from __future__ import annotations

import threading
from io import BytesIO
from pathlib import Path

from cache.embed import BUNDLED, Encoder, OnnxEncoder, prepare
from gateway.observe.logs import LineWriter, Log, build_log
from gateway.parts.embedding import Embedding
from tests.support.program import ROOT

FOLDER: Path = ROOT / ".cache" / "embedders"


def quiet_log() -> Log:
    writer = LineWriter(BytesIO())
    log = build_log(writer, "error", as_json=True)
    writer.close()
    return log


def embedding_of(encoder: Encoder | None = None, gate: threading.Event | None = None) -> Embedding:
    """The bundled embedder, or `encoder`, as a gateway has it; made when `gate` opens."""

    def make(_: threading.Event) -> Encoder:
        if gate is not None:
            gate.wait(10)
        return encoder or OnnxEncoder(prepare(BUNDLED, FOLDER))

    return Embedding(BUNDLED, make, quiet_log())
