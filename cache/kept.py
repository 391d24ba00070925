"""A question as its namespace holds it, and as an archive keeps it (cache/archive.py)."""

from __future__ import annotations

from cache.archive import Kept
from cache.embed import Vector
from cache.entry import Entry, Origin
from cache.index import to_int8
from cache.replay import Recording, encode


def kept_of(origin: Origin, entry: Entry, recording: Recording, vector: Vector) -> Kept:
    return Kept(
        namespace=origin.namespace,
        scope=origin.scope,
        model=origin.model,
        answered_by=recording.model,
        key=entry.key,
        group=entry.group,
        question=entry.question,
        owner=entry.owner,
        answer=entry.answer,
        tags=entry.tags,
        expires_at=recording.expires_at,
        cost_tokens=recording.cost_tokens,
        vector=to_int8(vector).tobytes(),
        recording=encode(recording),
    )


def entry_of(kept: Kept) -> Entry:
    return Entry(
        key=kept.key,
        question=kept.question,
        group=kept.group,
        owner=kept.owner,
        answer=kept.answer,
        tags=kept.tags,
    )
