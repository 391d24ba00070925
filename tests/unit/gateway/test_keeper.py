"""The account outlives the process, adds up to the last nano-dollar, and counts nothing twice."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.contract import CacheStatus, Usage, Waste
from gateway.catalog import ModelCard
from gateway.observe.batch import COLUMNS, GRAINS_S
from gateway.observe.book import BookFault, Query
from gateway.observe.book_sqlite import SqliteBook
from gateway.observe.explain import money_of
from gateway.observe.journal import Journal
from gateway.observe.keeper import Keeper
from gateway.observe.ledger import NOTHING, Ledger, Record
from gateway.observe.rollup import TECHNIQUES, Prices
from gateway.observe.usage import answer, as_csv, usd
from gateway.settings import LedgerSettings

SMALL, LARGE = ModelCard("small", "", None, 0.1, 0.4), ModelCard("large", "", None, 1.0, 4.0)
PRICES = Prices([SMALL, LARGE], LARGE)
DAY_S = 86_400
NOON = 20_000 * DAY_S + 12 * 3600
ALWAYS = Query(0, 40_000 * DAY_S, DAY_S)


class House:
    """A ledger and its keeper, as gateway/parts/ledger.py makes them."""

    def __init__(
        self,
        home: Path,
        book: SqliteBook | None = None,
        now: float = NOON,
        prices: Prices = PRICES,
    ) -> None:
        self.told: list[str] = []
        folder = home / "journal"
        self.book = book or SqliteBook(home / "ledger.db", LedgerSettings())
        self.journal = Journal(folder, 1 << 20, self._tell, prices.listed)
        self.ledger = Ledger(self.journal.append)
        self.keeper = Keeper(
            self.ledger,
            self.book,
            prices,
            folder=folder,
            journal=self.journal,
            save_s=0.01,
            on_event=self._tell,
            wall=lambda: now,
        )

    def _tell(self, what: str, **_: Any) -> None:
        self.told.append(what)

    def die(self) -> None:
        """As `kill -9` does: nothing is saved, and the kernel lets go of the lock."""
        self.journal.close()
        self.book.close()

    async def total(self, query: Query = ALWAYS) -> dict[str, int]:
        found = await self.keeper.ask(lambda book: answer(book, query))
        return dict(zip(COLUMNS, found.totals, strict=True))


def booked(number: int = 1, at: float = NOON, **more: Any) -> Record:
    plain = Record(
        at, f"r{number}", "t", "large", "large", 200, Usage(10, 4), 0.5, 0.1,
        [CacheStatus("exact", forward="miss")], [],
    )  # fmt: skip
    return Record(**{name: getattr(plain, name) for name in plain.__struct_fields__} | more)


async def test_what_is_booked_is_saved_and_read_from_the_next_process_on(tmp_path: Path) -> None:
    house = House(tmp_path)
    await house.keeper.open()
    house.ledger.append(booked())
    await house.keeper.close()
    later = House(tmp_path)
    await later.keeper.open()
    assert (await later.total())["requests"] == 1
    assert (await later.keeper.find("r1"))[0].record.usage == Usage(10, 4)
    await later.keeper.close()


@pytest.mark.parametrize("killed", [False, True])
async def test_what_was_booked_keeps_its_price_when_prices_change(
    tmp_path: Path, killed: bool
) -> None:
    """In the account, in the lookup, and in what is read again after a `kill -9`."""
    house = House(tmp_path)
    await house.keeper.open()
    house.ledger.append(booked())
    if killed:
        house.die()
    else:
        await house.keeper.close()
    cheap = ModelCard("large", "", None, 0.01, 0.04)
    later = House(tmp_path, prices=Prices([cheap], cheap))
    await later.keeper.open()
    assert (await later.total())["spent"] == 10 * 1000 + 4 * 4000
    [found] = await later.keeper.find("r1")
    assert money_of(found.record, found.prices)["spent"] == 10 * 1000 + 4 * 4000
    later.ledger.append(booked(2))
    assert (await later.total())["spent"] == 10 * 1010 + 4 * 4040
    [found] = await later.keeper.find("r2")
    assert money_of(found.record, found.prices)["spent"] == 10 * 10 + 4 * 40
    await later.keeper.close()


@pytest.mark.parametrize("saved", [0, 1, 3])
async def test_a_process_that_is_killed_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, saved: int
) -> None:
    house = House(tmp_path)
    await house.keeper.open()
    for number in range(3):
        if number == saved:
            await house.keeper.save()
        house.ledger.append(booked(number))
    if saved == 3:
        await house.keeper.save()
    house.die()
    for _ in range(2):
        later = House(tmp_path)
        await later.keeper.open()
        assert (await later.total())["requests"] == 3
        later.die()


async def test_a_process_takes_in_what_a_dead_neighbour_left_and_not_a_living_ones(
    tmp_path: Path,
) -> None:
    first, second = House(tmp_path), House(tmp_path)
    await first.keeper.open()
    await second.keeper.open()
    first.ledger.append(booked(1))
    second.ledger.append(booked(2))
    second.die()
    third = House(tmp_path)
    await third.keeper.open()
    assert (await third.total())["requests"] == 1, "the first one lives, and saves its own"
    await first.keeper.close()
    assert (await third.total())["requests"] == 2
    await third.keeper.close()


async def test_what_cannot_be_saved_is_saved_with_the_next_and_told_once(tmp_path: Path) -> None:
    class Flaky(SqliteBook):
        broken = True

        def save(self, *given: Any) -> None:
            if self.broken:
                raise BookFault("the disk is on fire")
            super().save(*given)

    book = Flaky(tmp_path / "ledger.db", LedgerSettings())
    book.broken = False
    house = House(tmp_path, book)
    await house.keeper.open()
    book.broken = True
    for number in range(2):
        house.ledger.append(booked(number))
        await house.keeper.save()
    book.broken = False
    house.ledger.append(booked(2))
    assert (await house.total())["requests"] == 3
    assert house.told == ["ledger cannot be saved"]
    await house.keeper.close()


async def test_savings_do_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    class Slow(SqliteBook):
        def save(self, *given: Any) -> None:
            super().save(*given)
            with closing(sqlite3.connect(tmp_path / "ledger.db")) as other:
                assert other.execute("SELECT count(*) FROM positions").fetchone() == (1,)
            released.wait(5)

    import threading

    released = threading.Event()
    house = House(tmp_path, Slow(tmp_path / "ledger.db", LedgerSettings()))
    released.set()
    await house.keeper.open()
    released.clear()
    house.ledger.append(booked())
    saving = asyncio.create_task(house.keeper.save())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not saving.done()
    released.set()
    await saving
    await house.keeper.close()


async def test_old_sums_are_forgotten_by_their_grain(tmp_path: Path) -> None:
    house = House(tmp_path, now=NOON + 30 * DAY_S)
    await house.keeper.open()
    house.ledger.append(booked())
    await house.keeper.save()
    found = {
        grain_s: (await house.total(replace(ALWAYS, grain_s=grain_s)))["requests"]
        for grain_s in GRAINS_S
    }
    assert found == {5: 0, 60: 0, 3600: 1, DAY_S: 1}
    await house.keeper.close()


ORIGINS = ("exact", "semantic", "joined", "small", "large", "elsewhere")


@st.composite
def records(draw: st.DrawFn) -> Record:
    origin = draw(st.sampled_from(ORIGINS))
    model = origin if origin in {"small", "large"} else draw(st.sampled_from(["small", "large"]))
    status = draw(st.sampled_from([200, 200, 200, 499, 500, 429]))
    prompt = draw(st.integers(0, 99_999))
    usage = Usage(
        prompt,
        draw(st.integers(0, 99_999)),
        draw(st.integers(0, prompt)),
        draw(st.sampled_from([0, 7])),
    )
    thrown = draw(st.lists(st.builds(Usage, st.integers(0, 99), st.integers(0, 99)), max_size=2))
    return Record(
        NOON + draw(st.integers(0, 2 * DAY_S)),
        "r",
        draw(st.sampled_from(["a", "b"])),
        model,
        origin,
        status,
        usage if status == 200 else NOTHING,
        draw(st.floats(1e-6, 100)),
        None,
        [],
        [],
        0 if status == 200 else draw(st.integers(0, 999)),
        [Waste("small", one, "too weak") for one in thrown],
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(records(), max_size=30), st.integers(0, 30), st.booleans())
async def test_every_row_of_every_grain_adds_up_and_nothing_is_counted_twice(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Record], cut: int, killed: bool
) -> None:
    home = tmp_path_factory.mktemp("house")
    house = House(home)
    await house.keeper.open()
    for number, one in enumerate(rows):
        if number == cut:
            await house.keeper.save()
        house.ledger.append(one)
    if killed:
        house.die()
        house = House(home)
        await house.keeper.open()
    totals = []
    for grain_s in GRAINS_S[1:]:
        query = replace(ALWAYS, grain_s=grain_s, step_s=grain_s, fields=("tenant", "origin"))
        found = await house.keeper.ask(lambda book, query=query: book.usage(query))  # type: ignore[misc]
        for line in found:
            _adds_up(dict(zip(COLUMNS, line.numbers, strict=True)))
        totals.append(await house.total(replace(ALWAYS, grain_s=grain_s)))
    assert totals[0] == totals[1] == totals[2]
    good = [one.usage for one in rows if one.status == 200]
    assert totals[0]["requests"] == len(rows)
    assert totals[0]["prompt_tokens"] == sum(usage.prompt_tokens for usage in good)
    assert totals[0]["counterfactual"] == sum(
        usage.prompt_tokens * 1000 + usage.completion_tokens * 4000 for usage in good
    )
    await house.keeper.close()


def _adds_up(row: dict[str, int]) -> None:
    avoided = sum(row[f"avoided_{by}"] for by in TECHNIQUES)
    assert row["counterfactual"] + row["waste"] == row["spent"] + avoided
    delivered = row["prompt_tokens"] + row["completion_tokens"]
    assert delivered == row["on_large_tokens"] + sum(row[f"tokens_{by}"] for by in TECHNIQUES)


async def test_csv_shows_money_exactly_and_no_name_as_a_formula(tmp_path: Path) -> None:
    house = House(tmp_path)
    await house.keeper.open()
    house.ledger.append(booked(origin="exact", tenant="=HYPERLINK(1)"))
    query = replace(ALWAYS, step_s=DAY_S, fields=("tenant", "model"))
    found = await house.keeper.ask(lambda book: answer(book, query))
    head, row = as_csv(found).splitlines()
    cells = dict(zip(head.split(","), row.split(","), strict=True))
    assert cells["time"] == "2024-10-04T00:00:00Z"
    assert cells["tenant"] == "'=HYPERLINK(1)"
    assert cells["avoided_exact_usd"] == "0.000026000"
    assert cells["requests"] == "1"
    await house.keeper.close()


@pytest.mark.parametrize(
    ("nano", "text"), [(0, "0.000000000"), (-5, "-0.000000005"), (12_000_000_001, "12.000000001")]
)
def test_nano_dollars_become_decimal_numbers_without_a_rounding(nano: int, text: str) -> None:
    assert usd(nano) == text


def test_a_book_that_cannot_be_opened_says_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_bytes(b"not a database, surely" * 99)
    with pytest.raises(BookFault, match=r"ledger\.store.*memory://"):
        SqliteBook(tmp_path / "no.db", LedgerSettings()).open()
