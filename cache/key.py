"""When two calls are the same, and when an answer may be given twice.

Problem. A cache that picks the fields which make its key serves a wrong answer on the day that a
new parameter appears: the class of bug that gateways keep having (`logit_bias`, `top_logprobs`,
`reasoning_effort`, `chat_template_kwargs`, each years apart in the same product).

Choice. The key is everything: one C call packs the whole frozen `Call`, scope, weights fingerprint
and policy included, and SHA-256 makes it 32 bytes. What may differ between two askers of one thing
(who they are, `user`, `metadata`, `stream`, Cache-Control) is not in a `Call` to begin with: the
wire keeps it on the `Trail`. So a field added to `Call` is in the key before anyone thinks of it,
and the tables below make a test fail until somebody has.

Why no two calls share a key. MessagePack writes every value with its type and its length, so an
encoding is never the beginning of another, `1`, `1.0`, `True` and `"1"` differ, `None` differs from
an empty string, and `("ab",)` from `("a", "b")`. Field names are written too. A `Call` is canonical
already (the wire makes floats of floats, sorts `logit_bias` and JSON), so equal calls pack equally.

A key's last 8 bytes are its family: the hash of its scope alone. A shared store keeps a family in
one place and empties it as a whole, which it could not if it saw 32 bytes without any order. The 24
before them still hash everything, scope included: families that collide (somebody would have to
find a second preimage of 64 bits) share a place and never an answer.

Rejected: orjson with sorted keys (as fast, but `1.0` and `1` of a hand-made Call are as different
and tuples have no types); BLAKE3 (a dependency, and below a kilobyte no faster than SHA-256 with
CPU support); Python's `hash` (64 bits, seeded per process).

Price: 2 µs for a short chat call, and about 1 µs more per further kilobyte of prompt.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

from engine.contract import BadCall, Call, Message, Part, Sampling, ToolCall

KEY_BYTES: Final = 32
FAMILY_BYTES: Final = 8

KEYED: Final[Mapping[type, tuple[str, ...]]] = {
    Call: (
        *("kind", "model", "scope", "fingerprint", "policy"),
        *("messages", "prompt", "sampling", "n", "max_tokens", "longest", "stop"),
        *("logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls"),
        *("response_format", "chat_template_kwargs", "extra"),
    ),
    Sampling: (
        *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty"),
        *("repetition_penalty", "logit_bias", "seed"),
    ),
    Message: ("role", "parts", "name", "tool_calls", "tool_call_id"),
    Part: ("kind", "body"),
    ToolCall: ("id", "name", "arguments"),
}
"""Every field of every type in a `Call`, each looked at by a person who found that it changes what
is asked. Packing does not read this table: a field missing here is in the key all the same, and a
test fails. Nothing is outside the key; who would like to put something there keeps it out of Call.
"""

_FORMAT: Final = 3
"""Changes whenever the meaning of an old key does, so that no store is read with new eyes."""

_packer = msgspec.msgpack.Encoder()


def key_of(call: Call) -> bytes:
    """The 32 bytes that stand for `call`: equal for equal calls, different for different ones.

    Raises BadCall where the call cannot be written down: an integer over 64 bits, or text that is
    half of a surrogate pair.
    """
    try:
        packed = _packer.encode((_FORMAT, call))
    except (OverflowError, UnicodeEncodeError) as error:
        raise BadCall(
            f"The request holds a value that cannot be encoded ({error}). "
            "Integers must fit in 64 bits and text must be valid Unicode."
        ) from error
    return hashlib.sha256(packed).digest()[:-FAMILY_BYTES] + family_of(call.scope)


@functools.lru_cache(maxsize=1024)
def family_of(scope: str) -> bytes:
    """What the keys of one scope end with."""
    return hashlib.sha256(scope.encode()).digest()[:FAMILY_BYTES]


def cacheable(call: Call, allow_sampling: bool = False) -> bool:
    """Whether one answer to `call` may be given to everyone who asks the same.

    A caller who asks for randomness by name wants a new answer each time: best-of-n sampling sends
    the same request n times. One who names no temperature, or 0, or a seed, asks for the answer.
    Temperature 0 is greedy whatever `top_p` says. With `allow_sampling` (a tenant's policy)
    everything may be stored, choices of n > 1 included.
    """
    if allow_sampling:
        return True
    if call.n > 1:
        return False
    asked = call.sampling
    if asked.seed is not None or asked.temperature == 0:
        return True
    return asked.temperature is None and (asked.top_p is None or asked.top_p >= 1)
