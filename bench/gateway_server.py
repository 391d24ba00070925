"""The server that bench/gateway.py measures: everything but the engine, all layers on.

    python -m bench.gateway_server PORT [STORE [MEMORY_BYTES [PAUSE_S]]]

PAUSE_S is what the fake model takes for each of its 35 pieces.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from bench.gateway_answers import KEY, PIECES
from gateway.assemble import assemble
from gateway.backend import PlainBackend
from gateway.catalog import ModelCard
from gateway.configure import Loaded
from gateway.observe.logs import LineWriter, build_log
from gateway.server import build_server, run
from gateway.settings import (
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
from tests.support.fake import FakeModel

_DEFAULTS = ("", "memory://", str(64 << 20), "0")


def settings_on(port: int, store: str, memory_bytes: int, home: str) -> Settings:
    tenant = Tenant(
        name="bench",
        keys=(hashlib.sha256(KEY.encode()).hexdigest(),),
        rpm=1_000_000_000,
        max_concurrent=10_000,
    )
    return Settings(
        server=Server(port=port),
        models={name: Model(path=Path()) for name in ("small", "large")},
        exact=ExactCache(store=store, memory_bytes=memory_bytes),
        keys=Keys(store="memory://"),
        limits=Limits(store="memory://"),
        ledger=LedgerSettings(store=f"sqlite:///{home}/ledger.db"),
        semantic=SemanticCache(enabled=False, store="memory://"),
        tenants=(tenant,),
    )


def main(
    port: int, store: str = "memory://", memory_bytes: int = 64 << 20, pause_s: float = 0.0
) -> None:
    with tempfile.TemporaryDirectory() as home:
        _serve(settings_on(port, store, memory_bytes, home), pause_s)


def _serve(settings: Settings, pause_s: float) -> None:
    fakes = {
        name: FakeModel(lambda _: PIECES, name=name, keep=False, pause_s=pause_s)
        for name in settings.models
    }
    cards = {name: ModelCard(name, "0" * 64, 8192, 0.5, 2.0) for name in fakes}
    with tempfile.TemporaryFile() as sink:
        writer = LineWriter(sink)
        log = build_log(writer, "info", as_json=True)
        system = assemble(Loaded(settings), PlainBackend(fakes, cards), log)
        server = build_server(system.app, settings.server, system.drain, log)
        run(server)
        writer.close()


if __name__ == "__main__":
    port, store, memory_bytes, pause_s = [*sys.argv[1:], *_DEFAULTS[len(sys.argv) - 1 :]]
    main(int(port), store, int(memory_bytes), float(pause_s))
