"""A stored answer: how it is written down, and how it is played again.

Problem. A hit must give back what was said (the same deltas, logprobs, tool calls, usage) whether
it was asked for as JSON or as a stream, and it must cost next to nothing: at 9,000 hits a second a
core, 110 µs are all there is, and uvicorn takes 40 of them.

Choice. A `Recording` holds the answer's middle as packed bytes, not as objects. A hit hands these
on unopened as one `Burst`; a renderer opens it once, keeps what it made of it in the recording's
`memo`, and from then on a hit is a copy of bytes. Three things follow from bytes: the store counts
its memory honestly (a Delta is 150 B and its text as objects, 13 packed), a million deltas at rest
are little load on the garbage collector (a full collection takes 12 ms; with them as objects it
took 95), and what memory, SQLite and Redis hold is the same thing.

Rejected: a tuple of event objects (faster by one decoding of ~1 µs a delta at the first hit of each
kind only, and the two troubles above); rendered HTTP bodies as the entry (JSON and SSE become two
entries, and cache/ would know of HTTP).

Price: a hit whose renderer does not use `memo` decodes every time.

On disk: MessagePack of [format, crc32 of the rest, head, body]. Whatever does not decode, or was
written by another format, is a miss and never an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from engine.contract import Burst, Delta, End, Event, Finish, Start, TokenLogprob, Usage

FORMAT: Final = 1

OBJECT_BYTES: Final = 900
"""What an entry costs beside its bytes: the objects Recording, Usage and memo, and the store's own
entry, key and heap slot. Measured with tracemalloc in tests/unit/cache/test_memory.py."""


TAG_BYTES: Final = 50
"""What a tag costs beside its characters."""


def bytes_of_tags(tags: tuple[str, ...]) -> int:
    return sum(map(len, tags)) + TAG_BYTES * len(tags)


class Memo(dict[str, bytes]):
    """Rendered fragments of one recording, counted: a store that bounds its bytes sets `grew` and
    is told of each that comes later. Fragments are only added, by name, and live with the entry."""

    __slots__ = ("grew", "held_bytes")

    def __init__(self) -> None:
        super().__init__()
        self.held_bytes = 0
        self.grew: Callable[[], None] | None = None

    def __setitem__(self, name: str, fragment: bytes) -> None:
        self.held_bytes += len(fragment) - len(self.get(name, b""))
        super().__setitem__(name, fragment)
        if self.grew is not None:
            self.grew()


@dataclass(frozen=True, slots=True)
class Recording:
    """One complete answer, and what a store must know of it. Times are seconds since the epoch."""

    model: str
    created: int
    origin: str
    """Who computed it: small | large | an upstream's name."""
    usage: Usage
    body: bytes
    """Deltas and Finishes in order, packed (see `pack_body`)."""
    stored_at: float
    ttl_s: float
    scope: str
    policy: str = ""
    tags: tuple[str, ...] = ()
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    @property
    def expires_at(self) -> float:
        return self.stored_at + self.ttl_s

    @property
    def held_bytes(self) -> int:
        """Memory that this recording occupies now, fragments included."""
        held = OBJECT_BYTES + len(self.body) + self.memo.held_bytes
        return held + bytes_of_tags(self.tags) if self.tags else held

    @property
    def cost_tokens(self) -> float:
        """What computing it again would cost, in generated tokens. Reading a prompt token costs a
        quarter of writing one, which is how models are commonly priced."""
        return self.usage.completion_tokens + 0.25 * self.usage.prompt_tokens

    def events(self) -> tuple[Delta | Finish, ...]:
        return unpack_body(self.body)

    def whole_events(self) -> tuple[Delta | Finish, ...]:
        return unpack_whole(self.body)


# --------------------------------------------------------------------------- bytes


_packer = msgspec.msgpack.Encoder()
_Logprob = tuple[str, bytes, float, tuple[tuple[str, bytes, float], ...]]
_Row = tuple[int, str, str, tuple[int, ...], tuple[_Logprob, ...]]
"""A Delta's fields in order, its logprobs likewise; a Finish has kind "" and its reason second."""
_body_reader = msgspec.msgpack.Decoder(list[_Row])
_TEXTS: Final = ("text", "reasoning")


class _Head(msgspec.Struct, array_like=True, frozen=True):
    model: str
    created: int
    origin: str
    usage: tuple[int, int, int, int]
    stored_at: float
    ttl_s: float
    scope: str
    policy: str
    tags: tuple[str, ...]


_outer_reader = msgspec.msgpack.Decoder(tuple[int, int, bytes])
_inner_reader = msgspec.msgpack.Decoder(tuple[_Head, bytes])


def pack_body(events: list[Delta | Finish]) -> bytes:
    return _packer.encode([_row(event) for event in events])


def _row(event: Delta | Finish) -> _Row:
    if isinstance(event, Finish):
        return (event.index, "", event.reason, (), ())
    logprobs = tuple(
        (chosen.token, chosen.token_bytes, chosen.logprob, tuple(_pairs(chosen)))
        for chosen in event.logprobs
    )
    return (event.index, event.kind, event.payload, event.token_ids, logprobs)


def _pairs(chosen: TokenLogprob) -> Iterator[tuple[str, bytes, float]]:
    return ((other.token, other.token_bytes, other.logprob) for other in chosen.top)


def unpack_body(body: bytes) -> tuple[Delta | Finish, ...]:
    """Raises msgspec.DecodeError on what `pack_body` did not write."""
    return tuple([_event(row) for row in _body_reader.decode(body)])


def unpack_whole(body: bytes) -> tuple[Delta | Finish, ...]:
    """As `unpack_body`, but texts that follow each other are one Delta: of 35 pieces in a quarter
    of the time."""
    rows: list[_Row] = []
    texts: list[str] = []
    for row in _body_reader.decode(body):
        index, kind, payload, _, logprobs = row
        plain = kind in _TEXTS and not logprobs
        if plain and texts and rows[-1][:2] == (index, kind):
            texts.append(payload)
            continue
        _put_together(rows, texts)
        rows.append(row)
        texts = [payload] if plain else []
    _put_together(rows, texts)
    return tuple([_event(row) for row in rows])


def _put_together(rows: list[_Row], texts: list[str]) -> None:
    """The last row gets all of `texts`, and no token ids: of a part they would say too little."""
    if len(texts) > 1:
        index, kind, *_ = rows[-1]
        rows[-1] = (index, kind, "".join(texts), (), ())


def _event(row: _Row) -> Delta | Finish:
    index, kind, payload, token_ids, logprobs = row
    if kind == "":
        return Finish(index, payload)  # type: ignore[arg-type]  # written from a Finish
    if not logprobs:
        return Delta(index, kind, payload, token_ids)  # type: ignore[arg-type]
    restored = tuple(
        TokenLogprob(token, raw, logprob, tuple(TokenLogprob(*other) for other in top))
        for token, raw, logprob, top in logprobs
    )
    return Delta(index, kind, payload, token_ids, restored)  # type: ignore[arg-type]


def encode(recording: Recording) -> bytes:
    """For stores outside of memory. Fragments are not written: they are cheap to make again."""
    usage = recording.usage
    head = _Head(
        model=recording.model,
        created=recording.created,
        origin=recording.origin,
        usage=(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.computed_tokens,
        ),
        stored_at=recording.stored_at,
        ttl_s=recording.ttl_s,
        scope=recording.scope,
        policy=recording.policy,
        tags=recording.tags,
    )
    inner = _packer.encode((head, recording.body))
    return _packer.encode((FORMAT, zlib.crc32(inner), inner))


def decode(data: bytes) -> Recording | None:
    """What `encode` wrote, or None for anything else: rubbish, a torn write, another format."""
    try:
        version, crc, inner = _outer_reader.decode(data)
        if version != FORMAT or crc != zlib.crc32(inner):
            return None
        head, body = _inner_reader.decode(inner)
        _body_reader.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Recording(
        model=head.model,
        created=head.created,
        origin=head.origin,
        usage=Usage(*head.usage),
        body=body,
        stored_at=head.stored_at,
        ttl_s=head.ttl_s,
        scope=head.scope,
        policy=head.policy,
        tags=head.tags,
    )


# --------------------------------------------------------------------------- play


def replay(recording: Recording, answer_id: str) -> tuple[Event, ...]:
    """The recorded answer once more, under a new id. Nothing was computed for it; the other counts
    are those of the answer when it was made."""
    usage = recording.usage
    return (
        Start(answer_id, recording.created, recording.model, "exact"),
        Burst(recording.events, recording.memo, recording.whole_events),
        End(Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, 0)),
    )
