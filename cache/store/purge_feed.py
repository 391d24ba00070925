"""Purges of whole answers told to every gateway (cache/store/feed.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from cache.store.base import Which
from cache.store.feed import TRUST_S, Feed, Topic
from cache.store.redis_line import RedisLine

PURGES: Final = Topic(
    b"purges",
    msgspec.msgpack.Decoder(tuple[str, Which]),
    everything=Which(),
    nothing=Which(key=b""),
)
"""No entry has an empty key."""


class PurgeFeed(Feed[Which]):
    def __init__(
        self,
        line: RedisLine,
        *,
        clock: Callable[[], float] = time.monotonic,
        trust_s: float = TRUST_S,
    ) -> None:
        super().__init__(line, PURGES, clock=clock, trust_s=trust_s)
