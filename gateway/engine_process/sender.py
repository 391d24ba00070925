"""Frames from any thread, onto the line to the gateway's process.

A frame is sent at once by who has it, usually the engine thread: one system call of some 10 µs a
step, where a thread of its own would have to wake and take Python's lock. Where the gateway is slow
and the line is full, nobody waits: what is left over goes to a thread that does.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque

from gateway.engine_process.frames import Message, frame

LINE_BYTES = 1 << 20
"""Room on the line: some hundred steps of 128 streams."""


class Sender:
    """Owns the writing half of the line. Once the gateway is gone, what is sent is dropped: the
    thread that reads the line ends the process."""

    def __init__(self, line: socket.socket) -> None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINE_BYTES)
        self._line = line
        self._waiting: deque[memoryview] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="sender", daemon=True).start()

    def send(self, message: Message) -> None:
        """Never waits for the gateway."""
        framed = memoryview(frame(message))
        with self._changed:
            if not self._waiting:
                framed = framed[self._send_some(framed) :]
            if framed:
                self._waiting.append(framed)
                self._changed.notify_all()

    def drain(self, patience_s: float) -> None:
        """Wait until all has been sent."""
        until = time.monotonic() + patience_s
        with self._changed:
            while self._waiting and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def _send_some(self, framed: memoryview) -> int:
        """How much of it went."""
        try:
            return self._line.send(framed, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return len(framed)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                first = self._waiting[0]
            try:
                self._line.sendall(first)
            except OSError:
                return
            with self._changed:
                self._waiting.popleft()  # only here: what is sent is never overtaken
                self._changed.notify_all()
