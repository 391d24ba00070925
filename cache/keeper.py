"""Tells the archive what the namespaces gain, lose and learn, and never fails a request by it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from cache.archive import Archive, Kept, Lessons
from cache.embed import Vector
from cache.index import to_int8
from cache.replay import Recording, encode
from cache.space import Space
from cache.verify_budget import Budgeted

OnFault: TypeAlias = Callable[[str, Exception], None]

LESSONS_EVERY: Final = 100
"""Labels between two snapshots of what a namespace has learnt."""


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace, and what it is a namespace of."""

    namespace: bytes
    scope: str
    model: str
    space: Space


class Keeper:
    def __init__(self, archive: Archive, on_fault: OnFault = lambda _what, _error: None) -> None:
        self._archive = archive
        self._on_fault = on_fault

    def load(self) -> AsyncIterator[Kept | Lessons]:
        return self._archive.load()

    async def keep(self, at: Place, key: int, vector: Vector, recording: Recording) -> None:
        """A question was added under `key`."""
        entry = at.space.entry(key)
        policy = at.space.policy
        try:
            if entry is not None:
                kept = Kept(
                    namespace=at.namespace,
                    scope=at.scope,
                    model=at.model,
                    key=key,
                    group=entry.group,
                    question=entry.question,
                    owner=entry.owner,
                    vector=to_int8(vector).tobytes(),
                    recording=encode(recording),
                )
                await self._archive.keep(kept)
            if isinstance(policy, Budgeted) and policy.labels % LESSONS_EVERY == 0:
                await self._archive.learnt(Lessons(at.namespace, policy.snapshot()))
        except Exception as error:  # noqa: BLE001  an archive never fails a request
            self._on_fault("keep", error)
        await self.sweep(at)

    async def sweep(self, at: Place) -> None:
        """Questions were dropped. What the archive fails to hear is told again the next time."""
        keys = list(at.space.dropped)
        if not keys:
            return
        try:
            await self._archive.drop(at.namespace, keys)
        except Exception as error:  # noqa: BLE001  an archive never fails a request
            self._on_fault("drop", error)
            return
        del at.space.dropped[: len(keys)]
