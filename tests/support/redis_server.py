"""A Redis of the tests' own: a real server on a free port, in a folder of its own.

    version 7   `redis-server` on the PATH (Debian bookworm: apt-get install redis-server)
    version 8   another one: `REDIS8` names the program or its unpacked folder, or `redis-server` on
                the PATH is one. tests/support/get_redis8.sh fetches Debian trixie's packages and
                unpacks them into .redis8/, where they run with the loader that came with them.

What is not there is skipped, with the sentence that says how to get it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
VERSIONS = (7, 8)
_REMEDY = {
    7: "no redis-server 7 on the PATH; Debian: apt-get install redis-server",
    8: "no Redis 8 (REDIS8, .redis8/); on Debian: sh tests/support/get_redis8.sh",
}


def find(version: int) -> list[str]:
    """The command that starts this version. Skips the test where there is none."""
    for command in _candidates():
        if _version(command) == version:
            return command
    pytest.skip(_REMEDY[version])


def _candidates() -> list[list[str]]:
    found = []
    on_path = shutil.which("redis-server")
    if on_path:
        found.append([on_path])
    named = Path(os.environ.get("REDIS8", str(ROOT / ".redis8")))
    if named.is_file():
        found.append([str(named)])
    elif (named / "usr/bin/redis-server").exists():
        found.append(_with_own_loader(named))
    return found


def _with_own_loader(folder: Path) -> list[str]:
    """Packages of a newer Debian need its libc, which comes unpacked beside them."""
    loaders = sorted(folder.glob("usr/lib*/**/ld-linux*.so.*"))
    libraries = sorted({str(found.parent) for found in folder.glob("usr/lib/**/lib*.so.*")})
    server = str(folder / "usr/bin/redis-server")
    return [str(loaders[0]), "--library-path", ":".join(libraries), server]


def _version(command: list[str]) -> int | None:
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
        ).stdout
        found = re.search(r"v=(\d+)\.", said)
        return int(found[1]) if found else None
    return None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@contextmanager
def running_redis(version: int, folder: Path, *options: str) -> Iterator[RedisServer]:
    """A server that answers, ended however the block ends."""
    server = RedisServer(find(version), folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class RedisServer:
    """One server process. It forgets everything when it is killed: nothing is written to disk."""

    def __init__(self, command: list[str], folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            *(*command, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", "--loglevel", "warning", *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, protocol=2, socket_timeout=PATIENCE_S)

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        end = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"redis-server did not start: {' '.join(self._command)}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with suppress(redis.RedisError, OSError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """As a crash: nothing is said to anybody."""
        if self._process is not None:
            self.resume()
            self._process.kill()
            self._process.wait()
        self._process = None
        self.client.close()

    def stop(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def fill(self) -> None:
        """Over its bound and refusing to evict: every write that needs room is an error."""
        used = int(self.client.info("memory")["used_memory"])
        self.client.config_set("maxmemory-policy", "noeviction")
        self.client.config_set("maxmemory", used // 2)

    def make_room(self) -> None:
        self.client.config_set("maxmemory", 0)
