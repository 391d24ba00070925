"""What may be compared by meaning, and with what.

Partition hard, compare soft: a namespace is the exact key (cache/key.py) of a call without its last
user text. A field that is added to `Call` one day is in the namespace before anyone thinks of it,
as it is in the exact key. What is left out is the one text that an embedding can be trusted with.

Refused, each by name: what is not a text question, tools and images, several turns ("and what about
that one?" means something else each time; allowed by policy, then the history must be equal),
randomness asked for by name, n > 1, and questions about the present moment, whose answer is stale
before it is stored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cache.key import FAMILY_BYTES, cacheable, key_of
from engine.contract import Call, Message

VOLATILE_WORDS: Final = (
    *("today", "tonight", "tomorrow", "yesterday", "now", "currently", "latest", "weather"),
    *("forecast", "my balance", "stock price", "exchange rate", "what time", "what date"),
)


def volatile_pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    """What finds any of `words`, which may be regular expressions; None for none."""
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE) if words else None


VOLATILE: Final = volatile_pattern(VOLATILE_WORDS)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a tenant's policy says of the semantic cache. `volatile`: questions never cached."""

    max_error: float = 0.0
    """Wrong hits over all requests of a namespace; 0 is off."""
    ttl_s: float = 86_400.0
    allow_sampling: bool = False
    allow_turns: bool = False
    volatile: re.Pattern[str] | None = VOLATILE


def last_text(call: Call) -> str | None:
    """The text that is compared by meaning; None where there is none."""
    if call.kind == "text":
        return call.prompt if isinstance(call.prompt, str) and call.prompt.strip() else None
    if not call.messages or call.messages[-1].role != "user":
        return None
    last = call.messages[-1]
    if not last.text.strip() or any(part.kind != "text" for part in last.parts):
        return None
    return last.text


def namespace_of(call: Call, embedder: str = "") -> bytes:
    """The exact key of everything but the last user text; another one for each `embedder` (its
    fingerprint), since vectors of two of them cannot be compared."""
    if call.kind == "text":
        key = key_of(replace(call, prompt=""))
    else:
        last = call.messages[-1]
        blank = Message(role=last.role, name=last.name)
        key = key_of(replace(call, messages=(*call.messages[:-1], blank)))
    digest = hashlib.sha256(embedder.encode() + b"\0" + key).digest()
    return digest[:-FAMILY_BYTES] + key[-FAMILY_BYTES:]


def why_not(call: Call, terms: Terms) -> str | None:
    """Why `call` may not be cached by meaning, or None."""
    text = last_text(call)
    if text is None:
        return "not a text question"
    if call.tools is not None or any(m.role == "tool" or m.tool_calls for m in call.messages):
        return "tools"
    turns = sum(message.role in ("user", "assistant") for message in call.messages)
    if turns > 1 and not terms.allow_turns:
        return "several turns"
    if call.n > 1 or not cacheable(call, terms.allow_sampling):
        return "randomness"
    if terms.volatile is not None and terms.volatile.search(text):
        return "volatile"
    return None
