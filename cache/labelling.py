"""After the answer: it is compared, kept and remembered, while its request is long over.

A comparison may take a while (two embeddings, or a judge that waits for the engine to be idle), so
each runs by itself and so many at a time; what comes beyond is not learnt from. Audits have room of
their own, since one that tells nothing costs the promise (cache/verify_ledger.py). An erasure
reaches what is still compared: it is told to `Spaces`, which says so to what is coming.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cache.entry import Coming
from cache.hindsight import Given, Hindsight
from cache.keeper import Keeper
from cache.replay import Recording
from cache.spaces import Spaces
from cache.teach import Asked, Teacher
from engine.contract import Trail

FOR_AUDITS: Final = 4
"""Times as many audits may be under way as other comparisons."""

_TURNS: Final = 3
"""Of the event loop, in which the answer leaves before anything is made of it."""

NO_GROUP: Final = 0
"""It is not known yet which one an answer belongs to."""


class Labelling:
    """Owns the comparisons that are under way. Belongs to one event loop."""

    def __init__(
        self,
        teacher: Teacher,
        spaces: Spaces,
        hindsight: Hindsight,
        keeper: Keeper | None,
        most: int,
    ) -> None:
        self._teacher = teacher
        self._spaces = spaces
        self._hindsight = hindsight
        self._keeper = keeper
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, asked: Asked, recording: Recording, trail: Trail) -> None:
        """Returns at once. Whatever comes of it, `asked` is closed."""
        forgotten = self._spaces.find(asked.space.origin.namespace) is not asked.space
        audit = asked.verdict is not None and asked.verdict.action == "explore"
        if forgotten or len(self._tasks) >= self._most * (FOR_AUDITS if audit else 1):
            asked.close()
            return
        labels = asked.space.origin.labels(
            NO_GROUP, recording.model, recording.tags, asked.owner, trail.id
        )
        coming = self._spaces.expect(labels)
        task = asyncio.create_task(self._learn(asked, recording, coming, trail.tenant))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._spaces.arrived(coming))

    async def settle(self) -> None:
        """Wait until all that began is compared and kept."""
        while self._tasks:
            await asyncio.wait(self._tasks)  # one that failed keeps nobody from closing

    async def _learn(self, asked: Asked, recording: Recording, coming: Coming, tenant: str) -> None:
        try:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            learnt = await self._teacher.learn(asked, recording, coming)
        finally:
            asked.close()
        if learnt is not None:
            given = Given(tenant, asked.owner, asked.space, learnt.group, None)
            self._hindsight.remember(coming.labels.answer, given)
            if learnt.key is not None and self._keeper is not None:
                await self._keeper.keep(asked.space, learnt.key, asked.vector)
        await self._spaces.tell()
