"""Sums that a text states, and whether they hold: the cheapest proof that an answer is wrong.

"3 × 4 = 13" needs no second model to be refuted. On GSM8K the share of stated sums that do not hold
says more about a wrong answer than the answer's embedding does (bench/cascade.py). Only chains of
plain numbers with + − × ÷ are read, two-level precedence, no brackets: what cannot be read is not
counted, never guessed.

A question that is itself a plain sum ("523 * 45", "Multiply 33 by 64") has one right result, so
its answer is proved right or wrong without asking anybody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_CLAIM = re.compile(
    rf"(?<![\d.,)+*/x×÷-])(?<![-+*/x×÷]\s)({_NUMBER}(?:\s{{0,2}}[-+*/x×÷]\s{{0,2}}\$?{_NUMBER})+)\s{{0,2}}=\s{{0,2}}\$?"
    rf"(-?{_NUMBER})(?![.,]?\d|\s{{0,2}}[-+*/x×÷]\s{{0,2}}\$?\d)"
)
_TOKEN = re.compile(rf"{_NUMBER}|[-+*/x×÷]")
_ASKED = re.compile(
    rf"(?<![\w.,)+*/×÷-])(?<![-+*/×÷]\s){_NUMBER}(?:\s{{0,2}}[-+*/x×÷]\s{{0,2}}{_NUMBER})+"
    r"(?![.,]?\d|\w|\s{0,2}[-+*/×÷(])"
)
_DATE = re.compile(r"\d+([-/])\d+\1\d+")
_TWO = rf"\s+({_NUMBER})\s+(?:and|to|by|from)\s+({_NUMBER})(?![.,]?\d|\w)"
_SPOKEN = re.compile(
    rf"\b(add|sum of|multiply|product of|divide|subtract|difference of){_TWO}", re.IGNORECASE
)
_INFIX = re.compile(
    rf"(?<![\w.,-])({_NUMBER})\s+(plus|minus|times|multiplied by|divided by)\s+({_NUMBER})"
    r"(?![.,]?\d|\w)",
    re.IGNORECASE,
)
_SIGNS = {
    "add": "+",
    "sum of": "+",
    "plus": "+",
    "minus": "-",
    "subtract": "-",
    "difference of": "-",
    "multiply": "*",
    "product of": "*",
    "times": "*",
    "multiplied by": "*",
    "divide": "/",
    "divided by": "/",
}
_RESULT = re.compile(rf"[-−]?\$?{_NUMBER}")
_MANY = re.compile(_NUMBER)
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


def check_result(question: str, result: str) -> bool | None:
    """Whether `result` ends in what the question's only sum comes to. None: the question holds
    other numbers too, or no sum, or brackets, so that nothing is proved."""
    value = _asked(question[-_MAX_CHARS:])
    if value is None:
        return None
    said = _RESULT.findall(result)
    if not said:
        return False
    last = said[-1].replace("−", "-").replace("$", "").rstrip(",")
    return _agrees(value, last)


def _asked(question: str) -> float | None:
    """All numbers of the question have to be in the sum: with others, more is asked than a sum."""
    numbers = len(_MANY.findall(question))
    if numbers < 2:
        return None
    found = _ASKED.search(question)
    if found is not None:
        chain = found.group(0)
        whole = len(_MANY.findall(chain)) == numbers and not _DATE.fullmatch(chain)
        return _evaluate(chain) if whole else None
    return _spoken(question) if numbers == 2 else None


def _spoken(question: str) -> float | None:
    """ "Add 3 and 8", "8 minus 3"; "subtract 3 from 8" turns the two around."""
    told = _SPOKEN.search(question)
    if told is not None:
        verb, first, second = told.group(1).lower(), told.group(2), told.group(3)
        if verb == "subtract":
            first, second = second, first
        return _evaluate(f"{first}{_SIGNS[verb]}{second}")
    between = _INFIX.search(question)
    if between is None:
        return None
    return _evaluate(f"{between.group(1)}{_SIGNS[between.group(2).lower()]}{between.group(3)}")


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
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total


def _number(token: str) -> float:
    return float(token.replace(",", ""))


def _agrees(value: float, stated: str) -> bool:
    """Equal to the last digit that is printed; a whole number must be exact."""
    decimals = len(stated.partition(".")[2])
    tolerance = 0.51 * 10.0**-decimals if decimals else 1e-6
    return abs(value - _number(stated)) <= max(tolerance, 1e-6 * abs(value))
