"""A Prometheus of the tests' own: a real server on a free port, in a folder of its own.

`sh tests/support/get_prometheus.sh` unpacks Debian's package into .prometheus/; nothing is
installed. Looked at in this order: `PROMETHEUS` (the folder of prometheus and promtool), that
folder, the PATH. What is not there is skipped, with the sentence that says how to get it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.redis_server import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


def find(program: str) -> str:
    """Where `prometheus` or `promtool` is. Skips the test where it is not."""
    for folder in (os.environ.get("PROMETHEUS"), ROOT / ".prometheus/usr/bin"):
        path = Path(folder or "nowhere") / program
        if path.is_file():
            return str(path)
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"there is no {program}; on Debian: sh tests/support/get_prometheus.sh")
    return found


class Prometheus:
    """What a running server is asked for over its HTTP API."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1/"

    def ready(self) -> bool:
        with suppress(OSError):
            return bool(self.query("vector(1)"))
        return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression is now. Raises HTTPError for one that is not PromQL."""
        return self._get("query", query=expression)["result"]

    def alerts(self) -> list[dict[str, Any]]:
        """Every alerting rule, with its health."""
        groups = self._get("rules", type="alert")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self._base}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            return json.load(response)["data"]


@contextmanager
def running_prometheus(home: Path, config: str) -> Iterator[Prometheus]:
    """A server that answers and runs `config` (YAML), ended however the block ends."""
    (home / "prometheus.yml").write_text(config, "utf-8")
    port = free_port()
    command = [
        find("prometheus"),
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    server = Prometheus(port)
    try:
        end = time.monotonic() + PATIENCE_S
        while not server.ready():
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError((home / "prometheus.log").read_text()[-4000:])
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
