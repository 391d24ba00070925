"""structlog, set up once and handed on; no global configuration.

One line per request, at info, with names and numbers and never with a prompt or an answer. On a
terminal the lines are for people; elsewhere they are JSON.

Writing must not block the event loop: a full pipe behind stderr would stop every request. So a line
is appended to a deque (0.1 µs) and a thread writes what has gathered, twenty times a second and at
exit. Rejected: a queue, whose every `put` wakes the thread and costs a switch of the interpreter
lock. Bounded: past `MAX_WAITING` lines new ones are dropped, counted, and the count is logged.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias

import orjson
import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

MAX_WAITING = 50_000
FLUSH_EVERY_S = 0.05

MESSAGE = 200
MOST_CAUSES = 8
NAMES_CODE = (AttributeError, ImportError, NameError, OSError, TypeError)
"""What these quote are names of ours: attributes, modules, files."""
_QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1).)*(?:\1|$)""", re.DOTALL)

Log: TypeAlias = structlog.typing.FilteringBoundLogger


class LineWriter:
    """Takes lines from any thread; one thread of its own writes them. `close` writes the rest."""

    def __init__(
        self, stream: BinaryIO, every_s: float = FLUSH_EVERY_S, most: int = MAX_WAITING
    ) -> None:
        self._stream = stream
        self._most = most
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sluice-logs", daemon=True)
        self._thread.start()

    def line(self, text: bytes) -> None:
        if len(self._waiting) >= self._most:
            self._dropped += 1
            return
        self._waiting.append(text)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._write()
        self._write()

    def _write(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            lines.append(orjson.dumps({"event": "log lines dropped", "count": dropped}))
        if not lines:
            return
        lines.append(b"")
        try:
            self._stream.write(b"\n".join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            # Nobody reads our stderr any more. Serving goes on; there is nowhere to say so.
            return


class _Sink:
    """The innermost logger of structlog's chain: every level ends in `LineWriter.line`."""

    def __init__(self, write: Callable[..., None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = write
        self.msg = self.log = self.exception = write


def build_log(writer: LineWriter, level: str, as_json: bool) -> Log:
    """A logger that writes to `writer`. `level` is a name such as "info"."""
    lines: list[Processor] = [_JsonLines()] if as_json else _console()
    logger = structlog.wrap_logger(
        _Sink(writer.line),
        processors=lines,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    bound: Log = logger.bind()
    return bound


def build_relay(tell: Callable[[str, EventDict], None], level: str) -> Log:
    """A logger whose lines go on to another process's log, with their level and without time."""

    def relayed(_: WrappedLogger, name: str, event: EventDict) -> tuple[tuple[str, EventDict], Any]:
        return (name, event), {}

    logger = structlog.wrap_logger(
        _Sink(tell),
        processors=[_with_trace, relayed],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    bound: Log = logger.bind()
    return bound


def wants_json(configured: str) -> bool:
    return configured == "json" or (configured == "auto" and not sys.stderr.isatty())


class Bridge(logging.Handler):
    """Hands the lines of libraries that use the standard `logging` (uvicorn) to our log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(
            record.levelno,
            record.getMessage(),
            logger=record.name,
            exc_info=record.exc_info or None,
        )


def _console() -> list[Processor]:
    """For people: colours on a terminal."""
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        _with_trace,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        ),
        lambda _, __, text: str(text).encode(),
    ]


def _trace(exc_info: ExcInfo) -> str:
    """Frames and messages of an exception and of what led to it, without the content of requests:
    no local variables (which rich, structlog's own choice for people, shows), and of messages only
    the start, without what they quote. A message that holds a caller's text unquoted would still
    tell up to `MESSAGE` characters of it; ours never do, and Python's quote."""
    parts: list[str] = []
    error: BaseException | None = exc_info[1]
    while error is not None and len(parts) < MOST_CAUSES:
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"{frames}{type(error).__qualname__}: {_message(error)}")
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
    return "\nwhich led to:\n".join(reversed(parts))


def _message(error: BaseException) -> str:
    text = str(error)
    if not isinstance(error, NAMES_CODE):
        text = _QUOTED.sub("…", text)
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]}…"


_with_trace = structlog.processors.ExceptionRenderer(_trace)


class _JsonLines:
    """Level, time and JSON in one step: 2 µs a line, where structlog's own three take 6. The time
    is formatted once a second and its fraction appended."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, logger: WrappedLogger, level: str, event: EventDict) -> bytes:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        if event.get("exc_info"):
            event = _with_trace(logger, level, event)
        line = {"time": f"{self._text}.{int(now * 1e6) % 1_000_000:06d}Z", "level": level, **event}
        return orjson.dumps(line, default=repr)
