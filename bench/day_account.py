"""What each technique avoided on a replayed day, and how sure that is (bench/day.py).

Three measures, because none says it all. Large answer tokens are those that the large model
generated for the same request on the day without savings: what a caller would have waited for.
Tokens and US dollars are the ledger's, prompts included, by its own prices and rules
(gateway/observe/rollup.py): a hit avoids all of an answer, the cascade the difference between two
prices, the prefix tree the part of a prompt that was not computed again. They are made here from
what each reply says of itself, so that they have intervals, and the ledger's sums stand beside
them.

Intervals are 95 % bootstraps over visits, those included that avoided nothing: what turns and
copies of one visit avoid goes together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.day_report import RESAMPLES, TECHNIQUES, Said
from gateway.catalog import ModelCard
from gateway.observe.rollup import Prices
from gateway.settings import Cascade, bundled_models

NAMES = ("exact", "join", "semantic", "cascade", "prefix")
ALL = "all together"
_NANO = 1e-9


@dataclass(frozen=True, slots=True)
class Range:
    """A sum, or a share in percent, with its 95 % interval."""

    value: float
    low: float
    high: float

    def shown(self, form: str) -> str:
        low, high = format(self.low, form), format(self.high, form)
        return f"{format(self.value, form)} ({low} to {high})"


@dataclass(frozen=True, slots=True)
class Saved:
    """What one technique avoided."""

    technique: str
    large_tokens: Range
    """Answer tokens of the large model on the day without savings."""
    large_share: Range
    """The same of all of them."""
    tokens: Range
    """Prompt and answer tokens, as the ledger books them."""
    usd: Range
    usd_share: Range
    """Of what the day would have cost at the large model's price with no saving at all."""


def bundled_prices() -> Prices:
    """Those of the models that the day is served by."""
    cards = {
        name: ModelCard(name, "", price_in=model.price_in, price_out=model.price_out)
        for name, model in bundled_models().items()
    }
    return Prices(cards.values(), cards[Cascade().large])


def saved(on: Sequence[Said], off: Sequence[Said], prices: Prices) -> list[Saved]:
    """One row a technique, and one of all of them."""
    plain = {one.place: one.completion_tokens for one in off}
    numbers = {visit: row for row, visit in enumerate(sorted({one.visit for one in on}))}
    shape = (len(numbers), len(NAMES) + 1)
    large, tokens, usd = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for one in on:
        row, own = numbers[one.visit], plain[one.place]
        money = prices.account(one.model, one.origin, one.usage)
        large[row, -1] += own
        usd[row, -1] += money.counterfactual * _NANO
        if (technique := TECHNIQUES.get(one.origin)) is not None:
            large[row, NAMES.index(technique)] += own
        for column, name in enumerate(NAMES):
            tokens[row, column] += money.tokens.get(name, 0)
            usd[row, column] += money.avoided.get(name, 0) * _NANO
    return _rows(large, tokens, usd)


def _rows(
    large: NDArray[np.float64], tokens: NDArray[np.float64], usd: NDArray[np.float64]
) -> list[Saved]:
    """The tables are (visits, techniques and the whole)."""
    visits = len(large)
    times = np.random.default_rng(0).multinomial(visits, np.full(visits, 1 / visits), RESAMPLES)
    drawn = np.vstack([np.ones(visits), times])  # first the day itself
    of_large, of_tokens, of_usd = drawn @ large, drawn @ tokens, drawn @ usd
    groups = {name: [column] for column, name in enumerate(NAMES)}
    groups[ALL] = list(range(len(NAMES)))
    return [
        Saved(
            name,
            large_tokens=_range(of_large[:, columns].sum(axis=1)),
            large_share=_range(100 * of_large[:, columns].sum(axis=1) / of_large[:, -1]),
            tokens=_range(of_tokens[:, columns].sum(axis=1)),
            usd=_range(of_usd[:, columns].sum(axis=1)),
            usd_share=_range(100 * of_usd[:, columns].sum(axis=1) / of_usd[:, -1]),
        )
        for name, columns in groups.items()
    ]


def _range(drawn: NDArray[np.float64]) -> Range:
    low, high = np.percentile(drawn[1:], [2.5, 97.5])
    return Range(float(drawn[0]), float(low), float(high))


# --------------------------------------------------------------------------- as tables


def print_techniques(
    rows: Sequence[Saved],
    ledger_tokens: Mapping[str, float],
    ledger_usd: Mapping[str, float],
    wasted_usd: float,
) -> None:
    """What each avoided (95 % intervals), and beside it what the program's ledger says."""
    print("\n| technique | large answer tokens avoided | % of all | USD avoided | % of all "
          "| tokens avoided, prompts too | ledger: tokens | USD |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in rows:
        own = NAMES if one.technique == ALL else (one.technique,)
        booked = sum(ledger_tokens[name] for name in own)
        usd = sum(ledger_usd[name] for name in own)
        print(f"| {one.technique} | {one.large_tokens.shown(',.0f')} "
              f"| {one.large_share.shown('.1f')} | {one.usd.shown('.4f')} "
              f"| {one.usd_share.shown('.1f')} | {one.tokens.shown(',.0f')} "
              f"| {booked:,.0f} | {usd:.4f} |")  # fmt: skip
    print(f"\nNot subtracted: {wasted_usd:.4f} USD of waste (drafts, audits, shadow runs).")


def print_oracles(rows: Sequence[Saved], could: Mapping[str, int]) -> None:
    """Large answer tokens: what was reached of what could have been."""
    reached = {one.technique: one.large_tokens for one in rows}
    print("\n| oracle | could avoid, large answer tokens | reached | % of the oracle |")
    print("| --- | --- | --- | --- |")
    for name, most in could.items():
        got = sum(reached[part].value for part in name.split(" + "))
        part = f"{100 * got / most:.0f}" if most else "–"
        print(f"| {name} | {most:,} | {got:,.0f} | {part} |")
