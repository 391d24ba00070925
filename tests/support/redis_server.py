"""A Redis of the tests' own: a real server on a free port, in a folder of its own.

`sh tests/support/get_redis.sh` unpacks Debian's packages of both versions into .redis7/ and
.redis8/, where they run with the loader that came with them; nothing is installed. Looked at in
this order: `REDIS7` and `REDIS8` (a program, or a folder like those), the folders, the PATH.

What is not there is skipped, with the sentence that says how to get it.
"""

from __future__ import annotations

import os
import random
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
PATIENCE_S = 60.0
VERSIONS = (7, 8)


def find(version: int) -> list[str]:
    """The command that starts this version. Skips the test where there is none."""
    for command in _candidates(version):
        if _version(command) == version:
            return command
    pytest.skip(f"there is no Redis {version}; on Debian: sh tests/support/get_redis.sh")


def _candidates(version: int) -> list[list[str]]:
    found = []
    for named in (os.environ.get(f"REDIS{version}"), ROOT / f".redis{version}"):
        place = Path(named or "nowhere")
        if place.is_file():
            found.append([str(place)])
        elif (place / "usr/bin/redis-server").exists():
            found.append(_with_own_loader(place))
    on_path = shutil.which("redis-server")
    return [*found, [on_path]] if on_path else found


def _with_own_loader(folder: Path) -> list[str]:
    """Packages of a newer Debian need its libc, which comes unpacked beside them."""
    loaders = sorted(folder.glob("**/ld-linux*.so.*"))
    libraries = sorted({str(found.parent) for found in folder.glob("**/lib*.so.*")})
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
    """Below those that the system gives to whoever connects: such a port could be taken before its
    server binds it, and while its server is away by who tries to reach it there."""
    while True:
        port = random.randrange(10_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
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
