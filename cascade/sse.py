"""Server-sent events, from bytes as they come: only what OpenAI-compatible servers send.

Servers cut their writes anywhere, end lines with LF, CRLF or CR LF over two packets, put several
events into one packet or one into several, and send comments as heartbeats. `feed` takes any bytes
and gives the payloads of the events that are complete by now.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 16 << 20


class EventTooLarge(ValueError):
    """The server sent one event of more than 16 MiB."""


class EventReader:
    """State: the line that is not complete, and the data lines of the event that is not."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) + self._held > MAX_EVENT_BYTES:
            raise EventTooLarge("an event of more than 16 MiB")
        events: list[bytes] = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if not line:
                self._dispatch(events)
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._held += len(line)
        return events

    def close(self) -> list[bytes]:
        """The event that the server did not finish with an empty line, if it was one."""
        return [*self.feed(b"\n"), *self.feed(b"\n")]

    def _dispatch(self, events: list[bytes]) -> None:
        if self._data:
            events.append(b"\n".join(self._data))
        self._data, self._held = [], 0
