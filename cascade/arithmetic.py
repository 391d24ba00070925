"""Sums that a text states, and whether they hold: the cheapest proof that an answer is wrong.

"3 × 4 = 13" needs no second model to be refuted. On GSM8K the share of stated sums that do not hold
says more about a wrong answer than the answer's embedding does (bench/cascade.py). Only chains of
plain numbers with + − × ÷ are read, two-level precedence, no brackets: what cannot be read is not
counted, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import reduce

_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_CLAIM = re.compile(
    rf"(?<![\d.,)+*/x×÷-])(?<![-+*/x×÷]\s)({_NUMBER}(?:\s{{0,2}}[-+*/x×÷]\s{{0,2}}\$?{_NUMBER})+)\s{{0,2}}=\s{{0,2}}\$?"
    rf"(-?{_NUMBER})(?![.,]?\d|\s{{0,2}}[-+*/x×÷]\s{{0,2}}\$?\d)"
)
_TOKEN = re.compile(rf"{_NUMBER}|[-+*/x×÷]")
_MAX_CHARS = 8_192
"""Read from the end: where the result of a long answer is."""


@dataclass(frozen=True, slots=True)
class Sums:
    right: int
    wrong: int


def check_sums(text: str) -> Sums:
    """How many stated sums hold and how many do not, in the last 8,192 characters."""
    right = wrong = 0
    if "=" not in text:
        return Sums(0, 0)
    for claim in _CLAIM.finditer(text[-_MAX_CHARS:]):
        value = _evaluate(claim.group(1))
        if value is None:
            continue
        if _agrees(value, claim.group(2)):
            right += 1
        else:
            wrong += 1
    return Sums(right, wrong)


def _evaluate(chain: str) -> float | None:
    """× and ÷ before + and −, left to right; None on a division by zero."""
    tokens = _TOKEN.findall(chain)
    terms = [_number(tokens[0])]
    for sign, token in zip(tokens[1::2], tokens[2::2], strict=False):
        value = _number(token)
        if sign in "+-":
            terms.append(value if sign == "+" else -value)
        elif sign in "*x×":
            terms[-1] *= value
        elif value == 0.0:
            return None
        else:
            terms[-1] /= value
    return reduce(lambda a, b: a + b, terms)


def _number(token: str) -> float:
    return float(token.replace(",", ""))


def _agrees(value: float, stated: str) -> bool:
    """Equal to the last digit that is printed; a whole number must be exact."""
    decimals = len(stated.partition(".")[2])
    tolerance = 0.51 * 10.0**-decimals if decimals else 1e-6
    return abs(value - _number(stated)) <= max(tolerance, 1e-6 * abs(value))
