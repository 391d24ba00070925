"""Tells the archive what the namespaces gain, lose and learn, and never fails a request by it."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

from cache.archive import Archive, Dropped, Erasure, Kept, Lesson, OnNews, Summary
from cache.embed import Vector
from cache.entry import Origin
from cache.journal import Journal, Page
from cache.space import Space

OnFault: TypeAlias = Callable[[str, Exception], None]


class Keeper:
    """One per process and archive: a teller of its own, since numbers begin again with each."""

    def __init__(self, archive: Archive, on_fault: OnFault = lambda _what, _error: None) -> None:
        self._archive = archive
        self._on_fault = on_fault
        self._teller = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._waiting: dict[bytes, Journal] = {}

    @property
    def in_touch(self) -> bool:
        """Whether what is held in memory may be served: nothing was erased behind our back."""
        return self._archive.in_touch

    def journal(self, origin: Origin, clock: Callable[[], float]) -> Journal:
        return Journal(origin, self._teller, self._numbers, self._waiting, clock)

    async def open(self, on_news: OnNews) -> None:
        """Raises StoreFault where the archive cannot be used."""
        self._archive.follow(on_news)
        await self._archive.open()

    def load(self) -> AsyncIterator[Kept | Summary | Lesson]:
        return self._archive.load()

    async def close(self) -> None:
        await self._archive.close()

    async def flush(self) -> None:
        await self._attempt("flush", self._archive.flush())

    async def keep(self, space: Space, key: int, vector: Vector) -> None:
        """A question was added under `key`."""
        kept = space.kept(key, vector)
        if kept is not None:
            await self._attempt("keep", self._archive.keep(kept))

    async def tell(self) -> None:
        """Whatever the namespaces have to tell: one that gains a question may cost others some."""
        while self._waiting:
            _, journal = self._waiting.popitem()
            for page in journal.take():
                await self._send(page)

    async def _send(self, page: Page) -> None:
        if isinstance(page, Dropped):
            await self._attempt("drop", self._archive.drop(page))
        elif isinstance(page, Lesson):
            await self._attempt("teach", self._archive.teach(page))
        else:
            await self._attempt("sum up", self._archive.sum_up(page))

    async def erase(self, erasure: Erasure) -> int:
        """Raises StoreFault: who asks for an erasure must hear that it failed."""
        return await self._archive.erase(erasure)

    async def _attempt(self, what: str, doing: Awaitable[None]) -> None:
        try:
            await doing
        except Exception as error:  # noqa: BLE001  an archive never fails a request
            self._on_fault(what, error)
