"""The whole program as its users start it: `sluice serve` in a process of its own, on a free port.

Nothing here knows the inside: a `Program` is started with a settings file, watched through /readyz
and /dashboard/data, and ended with a signal. When it does not start, or a test fails, its log is
what one wants to read: it lies beside the state, and errors carry its end.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 180.0
"""For what takes a second on an idle machine. It ends a wait that would never end, and no more."""
COMMAND = (sys.executable, "-m", "gateway.cli")
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_GREETED = re.compile(r"at http://127\.0\.0\.1:(\d+)/v1")


def pages_of(state: dict[str, Any]) -> dict[str, int]:
    """Pages of each model that nobody holds."""
    pages = {name: model["pages"] for name, model in state["engine"].items()}
    return {name: one["free"] + one["cached"] for name, one in pages.items()}


def wait_until(true: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Ask again and again until `true()` is; its value."""
    end = time.monotonic() + patience_s
    while not (value := true()):
        if time.monotonic() > end:
            raise AssertionError(f"after {patience_s:g} s still not so: {what}")
        time.sleep(0.01)
    return value


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error

    @property
    def text(self) -> str:
        """Of the only choice of a chat."""
        text: str = self.json["choices"][0]["message"]["content"]
        return text

    @property
    def computed(self) -> int:
        computed: int = self.json["usage"]["sluice"]["computed_tokens"]
        return computed

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events; the last one is the text "[DONE]" where it is complete."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    @property
    def streamed_text(self) -> str:
        """Of choice 0 of a streamed chat."""
        choices = [c for event in self.events if event != "[DONE]" for c in event["choices"]]
        return "".join(c["delta"].get("content") or "" for c in choices if c["index"] == 0)


def read_reply(connection: socket.socket, method: str = "POST") -> Reply:
    """The next response on a connection, to its end. May read beyond: see `read_replies`."""
    with closing(http.client.HTTPResponse(connection, method=method)) as response:
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read())


def read_replies(connection: socket.socket, count: int) -> list[Reply]:
    """The responses to `count` requests that were sent without waiting; each tells its length."""
    replies = []
    with connection.makefile("rb") as lines:
        for _ in range(count):
            status = int(lines.readline().split()[1])
            headers = {k.lower(): v for k, v in http.client.parse_headers(lines).items()}
            replies.append(Reply(status, headers, lines.read(int(headers["content-length"]))))
    return replies


def post_bytes(
    body: bytes, path: str = CHAT, headers: str = "", length: int | None = None
) -> bytes:
    """A POST as it goes over the wire; `length` may lie about the body."""
    declared = len(body) if length is None else length
    head = (
        f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        f"content-length: {declared}\r\n{headers}\r\n"
    )
    return head.encode() + body


class Program:
    """A server process. `home` is where it runs and keeps its state."""

    def __init__(self, home: Path, settings: str) -> None:
        self.home = home
        self.log = home / "server.log"
        self._config = home / "sluice.toml"
        self._config.write_text(settings, "utf-8")
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Returns when it is ready. The log goes on where the last life of it ended."""
        before = len(self.logged()) if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--config", str(self._config)],
                cwd=self.home,
                env=quiet_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        greeted = wait_until(lambda: self._greeting(before), "the server greets")
        self.port = int(greeted[1])
        wait_until(lambda: self.get("/readyz").status == 200, "the server is ready")

    def _greeting(self, before: int) -> re.Match[str] | None:
        if not self.alive:
            raise AssertionError(f"the server ended at its start:\n{self.logged()[-4000:]}")
        return _GREETED.search(self.logged(), before)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def logged(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """At once, with no chance to put anything in order."""
        self.signal(signal.SIGKILL)
        self.wait()

    # ---------------------------------------------------------------- talk

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as connection:
            yield connection

    def get(self, path: str) -> Reply:
        with self.connect() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            return read_reply(connection, "GET")

    def post(self, body: Any, path: str = CHAT, **headers: str) -> Reply:
        """Send JSON (or bytes as they are); header names are written with underscores."""
        given = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.connect() as connection:
            connection.sendall(post_bytes(raw, path, given))
            return read_reply(connection)

    # ---------------------------------------------------------------- what it is doing

    def state(self) -> dict[str, Any]:
        """What the dashboard is fed with."""
        state: dict[str, Any] = self.get("/dashboard/data").json
        return state

    def running(self) -> int:
        """Sequences in the engine, waiting ones included; a tenth of a second old at most."""
        return sum(m["running"] + m["waiting"] for m in self.state()["engine"].values())

    def wait_idle(self) -> dict[str, Any]:
        """The state, once nothing is answered or computed and no page is held."""

        def idle() -> dict[str, Any] | None:
            state = self.state()
            busy = [m["running"] + m["waiting"] + m["pages"]["running"] + m["pages"]["leased"]
                    for m in state["engine"].values()]  # fmt: skip
            return None if state["inflight"] or any(busy) else state

        state: dict[str, Any] = wait_until(idle, "the server is idle")
        return state


def quiet_environment() -> dict[str, str]:
    """This process's, without settings that somebody may have exported, and few threads."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    return {**plain, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@contextmanager
def running(home: Path, settings: str) -> Iterator[Program]:
    """A server that is ready; ended however the block ends."""
    program = Program(home, settings)
    try:
        program.start()
        yield program
    finally:
        if program.alive:
            with suppress(subprocess.TimeoutExpired):
                program.stop()
        if program.alive:
            program.kill()


def run_to_end(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, for a run that is expected to end by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=home,
        env=quiet_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
