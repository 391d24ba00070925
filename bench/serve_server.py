"""The server that bench/serve.py measures: the whole gateway before an engine of random weights.

    python -m bench.serve_server PORT SHAPE shared|own

The engine (bench/serve_engine.py) is in this process or in its own, and measures itself alone
first; then it is served with every layer on but the semantic cache.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from bench.gateway_answers import KEY
from bench.serve import NAME
from gateway.assemble import assemble
from gateway.backend import Backend
from gateway.configure import Loaded
from gateway.engine_process.backend import OwnProcess
from gateway.observe.logs import LineWriter, Log, build_log
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

BUILDER = "bench.serve_engine:build"


def settings_on(port: int, home: str, shape: str) -> Settings:
    tenant = Tenant(
        name="bench",
        keys=(hashlib.sha256(KEY.encode()).hexdigest(),),
        rpm=1_000_000_000,
        max_concurrent=10_000,
    )
    return Settings(
        server=Server(port=port, max_inflight=2_000),
        models={NAME: Model(path=Path(shape))},
        cascade=Cascade(small=NAME, large=NAME),
        exact=ExactCache(store="memory://"),
        keys=Keys(store="memory://"),
        limits=Limits(store="memory://"),
        ledger=LedgerSettings(store=f"sqlite:///{home}/ledger.db"),
        semantic=SemanticCache(enabled=False, store="memory://"),
        tenants=(tenant,),
    )


def backend_for(settings: Settings, log: Log, process: str) -> Backend:
    if process == "own":
        return OwnProcess(settings, log, lambda _: None, builder=BUILDER)
    from bench.serve_engine import build  # torch, which the gateway alone does without

    return build(settings, log, lambda _: None)


def main(port: int, shape: str, process: str) -> None:
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as sink:
        settings = settings_on(port, home, shape)
        writer = LineWriter(sink)
        log = build_log(writer, "info", as_json=True)
        backend = backend_for(settings, log, process)
        system = assemble(Loaded(settings), backend, log)
        server = build_server(system.app, settings.server, system.drain, log)
        run(server)
        writer.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
