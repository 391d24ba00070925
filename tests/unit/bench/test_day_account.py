"""A replayed day's account adds up as the ledger does, and says how sure it is."""

from __future__ import annotations

import pytest

from bench.day_account import ALL, Saved, print_oracles, print_techniques, saved
from bench.day_report import Said
from engine.contract import Usage
from gateway.catalog import ModelCard
from gateway.observe.rollup import Prices

LARGE = ModelCard("large", "l", price_in=1.0, price_out=10.0)
PRICES = Prices([ModelCard("small", "s", price_in=0.1, price_out=1.0), LARGE], LARGE)
MICRO = 1e-6


def said(visit: int, origin: str, model: str, usage: Usage, copy: int = 0) -> Said:
    return Said(visit, 0, copy, "text", origin, model, usage, 0.1)


def rows_of(on: list[Said]) -> dict[str, Saved]:
    off = [
        said(one.visit, "large", "large", Usage(100, 50, 0, 150), one.copy)
        for one in on
    ]  # fmt: skip
    return {row.technique: row for row in saved(on, off, PRICES)}


def test_each_technique_has_what_it_avoided_in_both_units() -> None:
    rows = rows_of(
        [
            said(0, "large", "large", Usage(100, 50, 40, 110)),
            said(1, "exact", "large", Usage(100, 40)),
            said(2, "joined", "large", Usage(100, 40)),
            said(3, "semantic", "large", Usage(100, 30)),
            said(4, "small", "small", Usage(100, 20, 10, 110)),
        ]
    )
    tokens = {name: row.tokens.value for name, row in rows.items()}
    assert tokens == {"exact": 140, "join": 140, "semantic": 130, "cascade": 110,
                      "prefix": 50, ALL: 570}  # fmt: skip
    usd = {name: row.usd.value / MICRO for name, row in rows.items()}
    assert usd == pytest.approx({"exact": 500, "join": 500, "semantic": 400, "cascade": 270,
                                 "prefix": 41, ALL: 1711})  # fmt: skip
    large = {name: row.large_tokens.value for name, row in rows.items()}
    assert large == {"exact": 50, "join": 50, "semantic": 50, "cascade": 50, "prefix": 0, ALL: 200}
    assert rows[ALL].large_share.value == pytest.approx(80.0)


def test_who_inherited_a_joined_answer_avoided_nothing_by_it() -> None:
    rows = rows_of([said(0, "joined", "large", Usage(100, 40, 0, 140))])
    assert rows["join"].usd.value == 0.0


def test_an_interval_is_over_visits() -> None:
    """Twenty copies of one visit are one draw: they say less than twenty visits."""
    hit, miss = Usage(100, 50), Usage(100, 50, 0, 150)
    apart = rows_of(
        [said(n, "exact", "large", hit) for n in range(20)]
        + [said(n, "large", "large", miss) for n in range(20, 40)]
    )["exact"].large_share
    burst = rows_of(
        [said(0, "exact", "large", hit, copy) for copy in range(20)]
        + [said(n, "large", "large", miss) for n in range(20, 40)]
    )["exact"].large_share
    assert apart.value == burst.value == pytest.approx(50.0)
    assert apart.low < apart.value < apart.high
    assert burst.high - burst.low > 1.5 * (apart.high - apart.low)


def test_the_tables_name_each_technique_and_what_its_oracle_had(
    capsys: pytest.CaptureFixture[str],
) -> None:
    on = [said(0, "exact", "large", Usage(100, 40)), said(1, "large", "large", Usage(9, 9, 0, 18))]
    rows = list(rows_of(on).values())
    ledger = dict.fromkeys(("exact", "join", "semantic", "cascade", "prefix"), 7.0)
    print_techniques(rows, ledger, ledger, wasted_usd=0.25)
    print_oracles(rows, {"exact + join": 100, "semantic": 0})
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines}
    assert cells["exact"][1].startswith("50 (0 to 100)")
    assert cells[ALL][6] == "35"
    assert cells["exact + join"][1:] == ["100", "50", "50 |"]
    assert cells["semantic"][3] == "– |"
    assert any("0.2500 USD of waste" in line for line in lines)
