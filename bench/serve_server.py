"""The server that bench/serve.py measures: the whole gateway before a GPU model of random weights.

    python -m bench.serve_server PORT SHAPE

Measures the engine alone first, in this very process, with the load that the client will make, and
prints it as a line of JSON; then serves with every layer on but the semantic cache.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.engine_gpu_alone import Alone, Timed, make_gpu_lane
from bench.engine_gpu_shapes import SEED, SHAPES
from bench.gateway_answers import KEY
from bench.serve import EACH, PROMPT, STREAMS, WANTED
from engine.engine import Engine
from engine.lane import Lane
from gateway.assemble import assemble
from gateway.catalog import ModelCard
from gateway.configure import Loaded
from gateway.engine_backend import EngineBackend
from gateway.observe.logs import LineWriter, build_log
from gateway.server import build_server, run
from gateway.settings import (
    Cascade,
    ExactCache,
    Keys,
    LedgerSettings,
    Limits,
    Model,
    SemanticCache,
    Server,
    Settings,
    Tenant,
)

NAME = "large"


def settings_on(port: int, home: str) -> Settings:
    tenant = Tenant(
        name="bench",
        keys=(hashlib.sha256(KEY.encode()).hexdigest(),),
        rpm=1_000_000_000,
        max_concurrent=10_000,
    )
    return Settings(
        server=Server(port=port, max_inflight=2_000),
        models={NAME: Model(path=Path())},
        cascade=Cascade(small=NAME, large=NAME),
        exact=ExactCache(store="memory://"),
        keys=Keys(store="memory://"),
        limits=Limits(store="memory://"),
        ledger=LedgerSettings(store=f"sqlite:///{home}/ledger.db"),
        semantic=SemanticCache(enabled=False, store="memory://"),
        tenants=(tenant,),
    )


def measure_alone(lane: Lane, shape: str) -> float:
    """Tokens per second of the closed loop without HTTP and event loop."""
    rng = np.random.default_rng(SEED)
    vocab = int(SHAPES[shape]["vocab_size"])
    alone = Alone({shape: lane})
    alone.timed(shape).prepared.wait()

    def asked(count: int) -> list[tuple[np.ndarray, int]]:
        return [(rng.integers(10, vocab, PROMPT).astype(np.int32), WANTED) for _ in range(count)]

    alone.in_turn(shape, asked(2 * STREAMS), STREAMS)
    began = time.perf_counter()
    alone.in_turn(shape, asked(EACH * STREAMS), STREAMS)
    speed = EACH * STREAMS * WANTED / (time.perf_counter() - began)
    alone.close()
    return speed


def main(port: int, shape: str) -> None:
    lane = make_gpu_lane(shape, shape, torch.device("cuda", 0), 0.9)
    told = {"card": torch.cuda.get_device_name(0), "alone": measure_alone(lane, shape)}
    print(json.dumps(told), flush=True)
    assert isinstance(lane.runner, Timed)
    engine = Engine({NAME: replace(lane, name=NAME, stop_ids=frozenset())})
    cards = {NAME: ModelCard(NAME, "0" * 64, lane.max_tokens, 0.5, 2.0)}
    backend = EngineBackend(engine, cards)
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as sink:
        settings = settings_on(port, home)
        writer = LineWriter(sink)
        log = build_log(writer, "info", as_json=True)
        system = assemble(Loaded(settings), backend, log)
        server = build_server(system.app, settings.server, system.drain, log)
        run(server)
        writer.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
