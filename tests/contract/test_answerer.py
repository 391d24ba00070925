"""One suite against every answerer that stands at the core."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.contract import Answerer, UpstreamFailed
from engine.engine import Engine
from engine.lane import Lane
from engine.sequence import Chunk
from tests.support.answerer_contract import AnswererContract, always
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import KvRunner, fake_lane, real_lane
from tests.support.fake import FakeModel


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


class TestFake(AnswererContract):
    def answering(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return always(FakeModel(pause_s=0.001))

    def broken(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        return always(FakeModel(error=UpstreamFailed("no model there; start one")))
