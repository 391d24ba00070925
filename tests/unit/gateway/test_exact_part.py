"""The store of whole answers as it is set."""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path

import pytest

from cache.replay import Recording
from cache.store.sqlite import READ_TIMEOUT_S
from cache.store.sqlite_file import SqliteReader
from gateway.observe.logs import LineWriter, build_log
from gateway.parts.exact import build_cache
from gateway.settings import ExactCache
from tests.support.recordings import key_number, recording_of


async def test_who_has_patience_waits_for_a_slow_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lives, so that the answer is in the file and not in memory."""
    read = SqliteReader.read

    def slowly(self: SqliteReader, key: bytes) -> Recording | None:
        time.sleep(4 * READ_TIMEOUT_S)
        return read(self, key)

    monkeypatch.setattr(SqliteReader, "read", slowly)
    settings = ExactCache(store=f"sqlite:///{tmp_path}/exact.db", patience_s=60.0)
    answer = recording_of("a", stored_at=time.time())
    with_log = build_log(LineWriter(BytesIO()), "info", as_json=True)
    first = build_cache(settings, with_log).store
    await first.open()
    await first.put(key_number(1), answer)
    await first.close()
    second = build_cache(settings, with_log).store
    await second.open()
    found = await second.get(key_number(1))
    await second.close()
    assert found == answer
