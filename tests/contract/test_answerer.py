"""One suite against every answerer that stands at the core."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest
import pytest_asyncio

from engine.contract import Answerer, UpstreamFailed
from engine.engine import Engine
from engine.lane import Lane
from engine.sequence import Chunk
from gateway.engine_process.backend import OwnProcess
from gateway.observe.logs import LineWriter, build_log
from gateway.settings import Settings
from tests.support.answerer_contract import AnswererContract, always
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import KvRunner, fake_lane, real_lane
from tests.support.fake import FakeModel
from tests.support.own_process import FAKES


@contextlib.asynccontextmanager
async def running(lane: Lane) -> AsyncIterator[Answerer]:
    engine = Engine({lane.name: lane}, report=lambda *_: None)
    engine.start()
    try:
        yield engine.answerer(lane.name)
    finally:
        await engine.stop()


def fail(chunks: list[Chunk]) -> None:
    raise RuntimeError


class TestEngineOverAFakeRunner(AnswererContract):
    def answering(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return running(fake_lane())

    def broken(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return running(fake_lane(runner=KvRunner(64, 4, fail)))


class TestEngineOverAModel(AnswererContract):
    @pytest.fixture(autouse=True)
    def _checkpoint(self, tmp_path: Path) -> None:
        self.directory = make_checkpoint(tmp_path)

    def answering(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return running(real_lane(self.directory))

    def broken(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return running(real_lane(self.directory, num_pages=2))


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def own_process() -> AsyncIterator[OwnProcess]:
    """One for the whole suite, on one event loop: it takes seconds to start."""
    log = build_log(LineWriter(BytesIO()), "error", as_json=True)
    process = await asyncio.to_thread(OwnProcess, Settings(), log, lambda _: None, builder=FAKES)
    await process.start()
    yield process
    await process.stop()


@pytest.mark.asyncio(loop_scope="class")
class TestEngineInAProcessOfItsOwn(AnswererContract):
    @pytest.fixture(autouse=True)
    def _process(self, own_process: OwnProcess) -> None:
        self.process = own_process

    def answering(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return always(self.process.answerers["small"])

    def broken(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return always(self.process.answerers["broken"])


class TestFake(AnswererContract):
    def answering(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return always(FakeModel(pause_s=0.001))

    def broken(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return always(FakeModel(error=UpstreamFailed("no model there; start one")))
