"""[ledger] → the account: what books, what adds up, and what keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gateway.catalog import ModelCard
from gateway.observe.book_sqlite import SqliteBook
from gateway.observe.journal import Journal
from gateway.observe.keeper import Keeper
from gateway.observe.ledger import Ledger
from gateway.observe.logs import Log
from gateway.observe.rollup import Prices
from gateway.settings import LedgerSettings, Settings

SQLITE = "sqlite:///"
OWN = (SQLITE, "memory://")
"""Stores of one machine."""


def places(settings: LedgerSettings) -> tuple[Path | None, Path | None]:
    """The book's file and the journals' folder beside it; None: in memory."""
    if not settings.store.startswith(SQLITE):
        return None, None
    path = Path(settings.store.removeprefix(SQLITE))
    return path, path.with_name(f"{path.name}.journal")


def part_of(settings: Settings) -> str:
    """Whose account it is, for people; empty where nothing is shared with gateways elsewhere. How
    many those are nobody knows: they come and go, and no store counts them."""
    stores = {
        "[cache.exact]": settings.exact.store,
        "[cache.semantic]": settings.semantic.store if settings.semantic.enabled else "",
        "[keys]": settings.keys.store,
        "[limits]": settings.limits.store,
    }
    shared = [name for name, store in stores.items() if store and not store.startswith(OWN)]
    if not shared:
        return ""
    budgets = " Only what is used of budgets is everybody's." if "[limits]" in shared else ""
    return (
        "This gateway's part: requests that other gateways answered are not in it. Whoever has the "
        f"same Redis shares {', '.join(shared)} with it and keeps an account of its own; how many "
        f"they are is not known here.{budgets}"
    )


def open_book(settings: LedgerSettings) -> SqliteBook:
    """Raises BookFault."""
    book = SqliteBook(places(settings)[0], settings)
    book.open()
    return book


def build_ledger(
    settings: LedgerSettings, cards: Iterable[ModelCard], large: ModelCard, log: Log
) -> tuple[Ledger, Keeper]:
    """Opens nothing: `keeper.open` does."""
    path, folder = places(settings)
    prices = Prices(cards, large)
    journal = (
        Journal(folder, settings.journal_bytes, log.warning, prices.listed) if folder else None
    )
    ledger = Ledger(journal.append if journal is not None else None)
    keeper = Keeper(
        ledger,
        SqliteBook(path, settings),
        prices,
        folder=folder,
        journal=journal,
        save_s=settings.save_s,
        on_event=log.warning,
    )
    return ledger, keeper
