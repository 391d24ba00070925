"""The gateway that bench/upstream.py measures: every layer on, both models at a mock elsewhere.

python -m bench.upstream_server PORT MOCK_PORT
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from types import MappingProxyType

from bench.gateway_server import settings_on
from gateway.assemble import assemble
from gateway.configure import Loaded
from gateway.observe.logs import LineWriter, build_log
from gateway.parts.models import load_models
from gateway.server import build_server, run
from gateway.settings import Model, Settings


def settings_at(port: int, mock_port: int, home: str) -> Settings:
    there = Model(
        kind="openai",
        base_url=f"http://127.0.0.1:{mock_port}/v1",
        allow_private=True,
        price_in=0.5,
        price_out=2.0,
    )
    models = MappingProxyType({"small": there, "large": there})
    return replace(settings_on(port, "memory://", 64 << 20, home), models=models)


def main(port: int, mock_port: int) -> None:
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as sink:
        settings = settings_at(port, mock_port, home)
        writer = LineWriter(sink)
        log = build_log(writer, "info", as_json=True)
        backend = load_models(settings, {}, log, lambda _: None)
        system = assemble(Loaded(settings), backend, log)
        run(build_server(system.app, settings.server, system.drain, log))
        writer.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
