"""One engine process: started, listened to, ended.

It is a fresh interpreter and not a fork: CUDA does not survive a fork, and neither do the threads
of a gateway that starts it a second time. It gets one end of a socket pair, and nothing else that
is open here, and finds its packages where this process does.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from gateway.engine_process.frames import Begin, FromEngine, Splitter, frame, read_from_engine
from gateway.settings import Settings

PIECE = 1 << 18
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from gateway.engine_process.child import main; sys.exit(main(int(sys.argv[2]), sys.argv[3]))"
)
MOST_WORDS = 2_000
KILLED_S = 3.0
"""How long the system may take to end a process that was killed, and its use of a GPU."""


class Process:
    """A running engine process and our end of its line."""

    def __init__(self, settings: Settings, builder: str, said: Callable[[str], None]) -> None:
        """`builder`: MODULE:FUNCTION, which loads the models there (child.py's `Builder`). `said`
        is told each line of its stderr, from a thread. Raises OSError."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-c", BOOT, json.dumps(sys.path), str(theirs.fileno())]
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [*command, builder],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
        except BaseException:
            ours.close()
            raise
        self.line = ours
        with suppress(OSError):  # it has ended already: so will the line
            self.line.sendall(frame(Begin(settings)))
        self._splitter = Splitter()
        threading.Thread(target=self._listen, args=(said,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self, piece: bytes) -> list[FromEngine]:
        """The messages that this piece of the line completes."""
        return [read_from_engine(body) for body in self._splitter.feed(piece)]

    def wait_for_messages(self) -> list[FromEngine]:
        """The next ones, where there is no event loop yet; empty at the end of the line."""
        while piece := self._piece():
            if messages := self.read(piece):
                return messages
        return []

    async def attach(
        self, came: Callable[[FromEngine], None], ended: Callable[[], None]
    ) -> asyncio.Transport:
        """Let the running event loop read the line, and write to it."""

        def read(piece: bytes) -> None:
            for message in self.read(piece):
                came(message)

        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(lambda: _Line(read, ended), sock=self.line)
        return transport

    def kill(self) -> None:
        """At once. Harmless when it has ended."""
        self._process.kill()

    def hang_up(self) -> None:
        """Close our end of a line that no event loop has taken over."""
        self.line.close()

    def reap(self, patience_s: float) -> str:
        """Wait for its end, then make one; how it ended, in words. Blocks, but not for good: who
        hangs in a driver may not even be killed."""
        with suppress(subprocess.TimeoutExpired):
            return _how(self._process.wait(patience_s))
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            return _how(self._process.wait(KILLED_S))
        return f"process {self.pid} was killed and has not ended; its driver may hang"

    def _piece(self) -> bytes:
        try:
            return self.line.recv(PIECE)
        except ConnectionResetError:
            return b""

    def _listen(self, said: Callable[[str], None]) -> None:
        """To the last line: whoever holds its stderr may outlive it, so nobody waits for this."""
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                if text := line.decode("utf-8", "replace").rstrip():
                    said(text[:MOST_WORDS])


class _Line(asyncio.Protocol):
    """Hands on what comes from one process."""

    def __init__(self, came: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._came = came
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._came(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it is over
        self._ended()


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
