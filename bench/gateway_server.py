"""The server that bench/gateway.py measures: everything but the engine, all layers on."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from bench.gateway_answers import KEY, PIECES
from gateway.assemble import assemble
from gateway.backend import PlainBackend
from gateway.catalog import ModelCard
from gateway.observe.logs import LineWriter, build_log
from gateway.server import build_server, run
from gateway.settings import ExactCache, Model, Server, Settings, Tenant
from tests.support.fake import FakeModel


def settings_on(port: int) -> Settings:
    tenant = Tenant(
        name="bench",
        keys=(hashlib.sha256(KEY.encode()).hexdigest(),),
        rpm=1_000_000_000,
        max_concurrent=10_000,
    )
    return Settings(
        server=Server(port=port),
        models={name: Model(path=Path()) for name in ("small", "large")},
        exact=ExactCache(store="memory://"),
        tenants=(tenant,),
    )


def main(port: int) -> None:
    settings = settings_on(port)
    fakes = {name: FakeModel(lambda _: PIECES, name=name, keep=False) for name in settings.models}
    cards = {name: ModelCard(name, "0" * 64, 8192, 0.5, 2.0) for name in fakes}
    with tempfile.TemporaryFile() as sink:
        writer = LineWriter(sink)
        log = build_log(writer, "info", as_json=True)
        system = assemble(settings, PlainBackend(fakes, cards), log)
        server = build_server(system.app, settings.server, system.drain, log)
        run(server)
        writer.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
