"""What gateway and engine process say to each other, and how it lies on the line between them.

    gateway   Begin   Ask, Cancel …                                              Stop
    child             Told, Progress …  Ready   Letters, States, Told …          (end of line)
                      Beat, every second, from the first to the last

The line is one end of a socket pair, so nobody else can write to it. A message is a frame: its
length in four bytes, then MessagePack. msgspec decodes it straight into the contract's own
dataclasses by their types, so that nothing a caller wrote is ever more than data (pickle would be
code), for 3 µs a delta; all that a step of the engine produced is one frame.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import msgspec

from engine.contract import (
    AnswerError,
    BadCall,
    Call,
    DeadlineExceeded,
    Delta,
    End,
    Failed,
    Finish,
    Overloaded,
    Usage,
)
from engine.mailbox import Item
from gateway.catalog import ModelCard
from gateway.observe.metrics import EngineState
from gateway.settings import Settings

HEAD = 4
MOST = 1 << 30
"""Bytes of a message. A longer one is not ours: the line is out of step."""


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Arrays, tagged with the class's name."""


class Begin(Message, frozen=True):
    """Load these models."""

    settings: Settings


class Ask(Message, frozen=True):
    """`number` names the call on this line. Times are `time.monotonic()`'s, which is one clock for
    all processes of a machine."""

    number: int
    model: str
    call: Call
    id: str
    tenant: str
    share: float
    arrival: float
    deadline: float | None


class Cancel(Message, frozen=True):
    number: int


class Stop(Message, frozen=True):
    """Let what runs end within the backend's grace, and exit."""


class Progress(Message, frozen=True):
    """What is being loaded, for people."""

    text: str


class Ready(Message, frozen=True):
    """`device`: the kind that it computes on, cpu or cuda."""

    cards: dict[str, ModelCard]
    device: str


class Beat(Message, frozen=True):
    """The process runs, whatever its engine does."""


class Refused(Message, frozen=True):
    """The models cannot be loaded, and why; the process ends."""

    text: str


class Told(Message, frozen=True):
    """A line for the log."""

    level: str
    event: dict[str, Any]


class States(Message, frozen=True):
    states: dict[str, EngineState]


class Lost(Message, frozen=True):
    """The engine computes no more, and why; the process ends."""

    why: str


class Wrong(Message, frozen=True):
    """An AnswerError."""

    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


class Letter(Message, frozen=True, omit_defaults=True):
    """What became of one call: its texts before its ends, which keeps each choice's order. The last
    of it has its `usage`; with an `error`, that is what was computed of an answer that was cut. The
    times, and `begun`, what was computed by then, are told once, with the first letter."""

    number: int
    deltas: list[Delta] = []
    finishes: list[Finish] = []
    usage: Usage | None = None
    error: Wrong | None = None
    admitted: float | None = None
    first_token: float | None = None
    begun: Usage | None = None


class Letters(Message, frozen=True):
    """All that one step produced."""

    letters: list[Letter]


FromGateway: TypeAlias = Begin | Ask | Cancel | Stop
FromEngine: TypeAlias = Beat | Progress | Ready | Refused | Told | States | Lost | Letters

_ERRORS: dict[str, type[AnswerError]] = {
    error.__name__: error for error in (BadCall, DeadlineExceeded, Failed, Overloaded)
}


def letter(
    number: int,
    items: list[Item],
    cut: Callable[[], Usage],
    times: tuple[float | None, float | None] | None = None,
) -> Letter:
    """One call's part of a step. `cut`: what was computed, asked where an error ends it, and with
    the first. `times`, with the first: when it was admitted, and when its first token came."""
    usage, error = None, None
    last = items[-1]
    if isinstance(last, AnswerError):
        error, usage = wrong(last), cut()
    elif isinstance(last, End):
        usage = last.usage
    return Letter(
        number,
        [item for item in items if isinstance(item, Delta)],
        [item for item in items if isinstance(item, Finish)],
        usage,
        error,
        *(times or (None, None)),
        None if times is None else cut(),
    )


def items_of(one: Letter) -> list[Item]:
    """What `letter` was made of."""
    items: list[Item] = [*one.deltas, *one.finishes]
    if one.error is not None:
        items.append(right(one.error))
    elif one.usage is not None:
        items.append(End(one.usage))
    return items


def wrong(error: AnswerError) -> Wrong:
    return Wrong(type(error).__name__, error.message, error.param, error.code, error.retry_after_s)


def right(told: Wrong) -> AnswerError:
    """The error again; one of a kind that an engine does not raise is our failure."""
    kind = _ERRORS.get(told.kind, Failed)
    return kind(told.message, param=told.param, code=told.code, retry_after_s=told.retry_after_s)


# ------------------------------------------------------------------------------------- the line


def _as_data(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise NotImplementedError(f"{type(value)} cannot be sent")


def _as_path(wanted: type, value: Any) -> object:
    if wanted is Path:
        return Path(value)
    raise NotImplementedError(f"{wanted} cannot be read")


_encoder = msgspec.msgpack.Encoder(enc_hook=_as_data)
_from_gateway = msgspec.msgpack.Decoder(FromGateway, dec_hook=_as_path)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def frame(message: Message) -> bytes:
    """The message as it lies on the line."""
    framed = bytearray(HEAD)
    _encoder.encode_into(message, framed, HEAD)
    framed[:HEAD] = (len(framed) - HEAD).to_bytes(HEAD, "little")
    return bytes(framed)


def read_from_gateway(body: bytes) -> FromGateway:
    message: FromGateway = _from_gateway.decode(body)
    return message


def read_from_engine(body: bytes) -> FromEngine:
    message: FromEngine = _from_engine.decode(body)
    return message


class BadFrame(Exception):
    """The bytes are not frames of ours."""


class Splitter:
    """Pieces of bytes, cut anywhere → the bodies of whole frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The frames that this piece completes. Raises BadFrame."""
        data = self._rest + piece if self._rest else piece
        whole, at = [], 0
        while len(data) - at >= HEAD:
            begin = at + HEAD
            size = int.from_bytes(data[at:begin], "little")
            if size > MOST:
                raise BadFrame(f"a frame of {size} bytes")
            if len(data) - begin < size:
                break
            at = begin + size
            whole.append(data[begin:at])
        self._rest = data[at:]
        return whole
