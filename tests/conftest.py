"""Real servers that several folders of tests use. Each is started at most once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.redis_server import RedisServer, running_redis


@pytest.fixture(scope="session")
def redis7(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(7, tmp_path_factory.mktemp("redis7")) as server:
        yield server


@pytest.fixture(scope="session")
def redis8(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(8, tmp_path_factory.mktemp("redis8")) as server:
        yield server
