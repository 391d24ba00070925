"""Brings the account into its book, in batches, off the event loop; and answers for it.

    record ─▸ journal (before End leaves) ─▸ fold (every 20 ms) ─▸ batch ─▸ book (every second)

The batch and the journal's position are taken in one go on the event loop, so that they mean the
same records. If a saving fails, its batch takes in the next one and is tried again with it: nothing
is lost while the process lives, and if it dies, the journal still has it.

At the start every journal that no living process holds is read from where its saving ended. One
thread does all that touches the book; questions wait for a saving that is under way, and answer
with everything that was booked before they were asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gateway.observe import journal as archive
from gateway.observe.batch import Batch
from gateway.observe.book import Book, BookFault
from gateway.observe.journal import Journal, OnEvent, Position
from gateway.observe.ledger import Ledger, Record
from gateway.observe.rollup import PriceList, Prices, RollUp

T = TypeVar("T")

FORGET_EVERY_S = 600.0
MOST_FOUND = 20
"""Requests that are told of one id that callers chose."""


@dataclass(frozen=True, slots=True)
class Booked:
    """A record, and the prices at which it is in the account."""

    record: Record
    prices: Prices


class Keeper:
    """Owned by the event loop's thread, like the sums since the start (`rollup`)."""

    def __init__(
        self,
        ledger: Ledger,
        book: Book,
        prices: Prices,
        *,
        folder: Path | None,
        journal: Journal | None,
        save_s: float,
        on_event: OnEvent,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`folder` and `journal`: where single records are kept; None: nowhere."""
        self.rollup = RollUp(ledger, prices, also=self._add)
        self._book = book
        self.prices = prices
        self._folder = folder
        self._journal = journal
        self._save_s = save_s
        self._on_event = on_event
        self._wall = wall
        self._batch = Batch()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._lock = asyncio.Lock()
        self._next_forgetting = 0.0
        self._faulty = False

    async def open(self) -> None:
        """Take in what an earlier process left. Raises BookFault, JournalFault."""
        await self._on_thread(self._book.open)
        if self._journal is not None:
            self._journal.open()
        await self._on_thread(self._recover)

    async def close(self) -> None:
        """Save the rest. Without a journal, what cannot be saved now is gone, and that is told."""
        await self.save()
        if self._journal is not None:
            self._journal.close()
        await self._on_thread(self._book.close)
        self._thread.shutdown()

    async def run(self) -> None:
        """Save every so often, until cancelled."""
        while True:
            await asyncio.sleep(self._save_s)
            await self.save()

    async def save(self) -> None:
        """Everything booked until now is in the book, when this returns without a fault."""
        await asyncio.shield(asyncio.create_task(self._save()))

    async def ask(self, question: Callable[[Book], T]) -> T:
        """Put a question to the book, on its thread. Raises BookFault."""
        await self.save()
        return await self._on_thread(lambda: question(self._book))

    async def find(self, request_id: str) -> list[Booked]:
        """The records of one request: among the latest, else as they were kept."""
        self.rollup.fold()
        if found := [record for record in self.rollup.recent if record.id == request_id]:
            return [Booked(record, self.prices) for record in found]
        if self._folder is None:
            return []
        folder = self._folder
        kept, listed = await self._on_thread(lambda: archive.find(folder, request_id))
        return [Booked(record, self._prices_of(listed)) for record in kept]

    async def find_client(self, client_id: str) -> list[Booked]:
        """The latest records whose callers gave them this id, newest first."""
        self.rollup.fold()
        if self._folder is None:
            latest = [one for one in reversed(self.rollup.recent) if one.client_id == client_id]
            return [Booked(record, self.prices) for record in latest[:MOST_FOUND]]
        folder = self._folder
        kept = await self._on_thread(lambda: archive.find_client(folder, client_id, MOST_FOUND))
        return [Booked(record, self._prices_of(listed)) for record, listed in kept]

    # ------------------------------------------------------------------ inside

    def _add(self, record: Record) -> None:
        self._batch.add(record)

    async def _save(self) -> None:
        async with self._lock:
            await self._save_alone()

    async def _save_alone(self) -> None:
        self.rollup.fold()
        if not self._batch:
            return
        batch, self._batch = self._batch, Batch()
        read_to = self._journal.position() if self._journal is not None else None
        try:
            await self._on_thread(lambda: self._write(batch, read_to))
            self._faulty = False
        except BookFault as error:
            batch.absorb(self._batch)
            self._batch = batch
            if not self._faulty:
                self._on_event("ledger cannot be saved", problem=str(error))
            self._faulty = True

    def _write(self, batch: Batch, read_to: Position | None) -> None:
        self._book.save(batch, self.prices, read_to)
        if self._journal is not None and read_to is not None:
            with suppress(OSError):
                self._journal.prune(read_to)
        now = self._wall()
        if now >= self._next_forgetting:
            self._next_forgetting = now + FORGET_EVERY_S
            self._book.forget(int(now))

    def _recover(self) -> None:
        if self._folder is None or self._journal is None:
            return
        for number in archive.journals_in(self._folder):
            lock = None
            if number != self._journal.number:
                lock = archive.claim(self._folder / str(number))
                if lock is None:  # its process lives
                    continue
            try:
                self._read_again(number)
            finally:
                if lock is not None:
                    archive.release(lock)

    def _read_again(self, number: int) -> None:
        """What one process booked and did not save, at its prices."""
        assert self._folder is not None
        folder = self._folder / str(number)
        for segment in archive.read_from(folder, self._book.position(number)):
            batch = Batch()
            for record in segment.records:
                batch.add(record)
            read_to = Position(number, segment.number, segment.size)
            self._book.save(batch, self._prices_of(segment.prices), read_to)

    def _prices_of(self, listed: PriceList | None) -> Prices:
        """Today's, where it is not known what a token cost then."""
        return self.prices if listed is None else Prices.of(listed)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
