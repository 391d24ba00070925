"""The real server on a real port, with fakes for models; in this process or in one of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from engine.contract import Answerer
from gateway.assemble import System, assemble
from gateway.backend import PlainBackend
from gateway.catalog import ModelCard
from gateway.configure import Loaded
from gateway.observe.logs import LineWriter, build_log
from gateway.parts.embedding import Embedding
from gateway.server import DrainingServer, build_server
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
from tests.support.fake import FakeModel
from tests.support.speakers import PATIENCE_S

NOWHERE = Path("nowhere")
CONTEXT = 2048


def settings_for_tests(**changes: Any) -> Settings:
    """Two fake models, a memory store, a free port. `changes` replace whole tables."""
    plain = Settings(
        server=Server(port=0, shutdown_grace_s=2.0),
        models={"small": Model(path=NOWHERE), "large": Model(path=NOWHERE)},
        cascade=Cascade(folder=NOWHERE),
        exact=ExactCache(store="memory://"),
        keys=Keys(store="memory://"),
        limits=Limits(store="memory://"),
        ledger=LedgerSettings(store="memory://"),
        semantic=SemanticCache(enabled=False, store="memory://"),
        tenants=(Tenant(name="default"),),
    )
    return replace(plain, **changes)


@dataclass
class Running:
    port: int
    client: httpx.AsyncClient
    system: System
    server: DrainingServer
    models: Mapping[str, Answerer]
    logged: BytesIO
    stopped: asyncio.Task[None]

    @asynccontextmanager
    async def connect(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A raw connection, closed at the end whatever became of it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(
    settings: Settings | None = None,
    models: Mapping[str, Answerer] | None = None,
    prices: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    loaded: Loaded | None = None,
    embedding: Embedding | None = None,
) -> AsyncIterator[Running]:
    """`prices`: of prompt and answer, in US dollars per million tokens. `loaded`: knows the file
    that a reload reads."""
    settings = settings or settings_for_tests()
    models = models or {name: FakeModel(name=name) for name in settings.models}
    cards = {
        name: ModelCard(name, name * 8, CONTEXT, *prices.get(name, (1.0, 2.0))) for name in models
    }
    logged = BytesIO()
    writer = LineWriter(logged, every_s=0.01)
    log = build_log(writer, settings.logs.level, as_json=True)
    known = replace(loaded or Loaded(settings), settings=settings)
    system = assemble(known, PlainBackend(models, cards), log, embedding)
    listener = socket.create_server(("127.0.0.1", settings.server.port))
    port = listener.getsockname()[1]
    ready = asyncio.Event()
    server = build_server(
        system.app, settings.server, system.drain, log, ready.set, on_hangup=system.reloader.ask
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await ready.wait()
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S
        ) as client:
            yield Running(port, client, system, server, models, logged, task)
    finally:
        system.drain.begin()
        await task
        writer.close()


def request_bytes(body: bytes, *, headers: str = "", length: int | None = None) -> bytes:
    """A POST to the chat endpoint as it goes over the wire; `length` may lie about the body."""
    declared = len(body) if length is None else length
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\n"
        f"content-type: application/json\r\ncontent-length: {declared}\r\n{headers}\r\n"
    )
    return head.encode() + body


async def _serve_slowly(port: int) -> None:
    """For tests of signals: a model of ten words, which begins, and says them once a line or the
    end of stdin has come."""
    gate = asyncio.Event()
    slow = FakeModel(lambda _: [f"word{i} " for i in range(10)], gate=gate)
    base = settings_for_tests()
    settings = replace(base, server=replace(base.server, port=port, shutdown_grace_s=PATIENCE_S))
    async with serving(settings, {"small": slow, "large": slow}) as running:
        sys.stdout.write(f"{running.port}\n")
        sys.stdout.flush()
        loop = asyncio.get_running_loop()

        def wait_for_word() -> None:
            os.read(0, 1)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(gate.set)

        # A thread of the executor would be waited for at the end, and the word may never come.
        threading.Thread(target=wait_for_word, daemon=True).start()
        await running.stopped


if __name__ == "__main__":
    asyncio.run(_serve_slowly(int(sys.argv[1])))
