"""What an answer keeps of its question: words, letters, order, numbers.

Many requests ask for nothing new: sort this, spell that backwards, which of these is largest, who
lives where. Whoever answers such a request wrongly drops a word, invents one, mixes up letters or
leaves the list unsorted, and does it with the same confidence as always. Nothing here knows what
was asked for: these are only numbers, and the fitted gain model learns which of them a tenant's
requests care about. With the plain sums of arithmetic.py they avoid five points more of the large
model's tokens on graded tasks, at one point lost (bench/cascade.py).

The working is held against the question as well: which of its statements stand there word for word,
and which are invented. And a result that only goes on with the question's numbers, or counts its
list, can be compared with what that comes to (next_number.py). These three avoid four points more.

Rejected, because they added less than noise there: runs of words that the answer skips or invents,
pairs of words, loops, what compression makes of the answer.

The result is the last line, without an "Answer:" before it; what stands above it is the working.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cascade.next_number import next_number

NAMES = (
    "words_from_question",
    "words_of_its_own",
    "ends_as_working",
    "same_letters",
    "backwards",
    "list_items",
    "list_rising",
    "list_falling",
    "result_rank",
    "statements_kept",
    "statements_invented",
    "result_goes_on",
    "result_counts_list",
)

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_UNSIGNED = re.compile(r"\d[\d,]*(?:\.\d+)?")
_LABEL = re.compile(r"^(?:the )?(?:final )?(?:answer|result)\s*(?:is|:|=)\s*", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,;]\s+|;")
_MARKS = str.maketrans("", "", "-.,;:!?\"'()")
_LEAST_LETTERS = 3
"""Shorter words are each other's letters by chance."""
_STATEMENT_END = re.compile(r"[.\n;]+")
_LEAST_WORDS = 3
"""Of a statement: shorter ones stand anywhere."""
_LIST_END = re.compile(r"[:\n.?]")
_LEAST_ITEMS = 3
_MOST = 20.0
_MAX_CHARS = 4_096
_MAX_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Parts:
    """An answer's last line and what stands above it."""

    working: str
    result: str


def parts_of(answer: str) -> Parts:
    working, _, last = answer.strip().rpartition("\n")
    return Parts(working, _LABEL.sub("", last.strip()))


def kept(question: str, answer: Parts) -> tuple[float, ...]:
    """[len(NAMES)], in that order. Reads the last 4,096 characters of the question, the result and
    the working."""
    asked, result = question[-_MAX_CHARS:].lower(), answer.result[-_MAX_CHARS:].lower()
    working = answer.working[-_MAX_CHARS:].lower()
    numbers = _numbers(result)
    given, said = _values(_numbers(asked)), _values(numbers)
    return (
        *_words(asked, result),
        _as_worked_out(working, numbers),
        *_letters(asked, result),
        *_order(result),
        _rank(given, said),
        *_statements(asked, working or result),
        _agrees(next_number(given), said),
        _agrees(_list_length(asked), said),
    )


def _numbers(text: str) -> list[str]:
    """With their signs. An expression that begins with what may be missing is tried at every
    character, three times slower than one that begins with a digit."""
    return (_NUMBER if "-" in text else _UNSIGNED).findall(text)


def _words(asked: str, result: str) -> tuple[float, float]:
    said = _WORD.findall(result)
    if not said:
        return 0.0, 0.0
    left = Counter(_WORD.findall(asked))
    own = 0
    for word in said:
        if left[word] > 0:
            left[word] -= 1
        else:
            own += 1
    return (len(said) - own) / len(said), float(min(own, 20))


def _as_worked_out(working: str, numbers: Sequence[str]) -> float:
    """1: the result's number is the last one worked out; −1: it is another; 0: there are none."""
    before = _numbers(working[working.rfind("\n") + 1 :])
    if not numbers or not before:
        return 0.0
    return 1.0 if numbers[-1] == before[-1] else -1.0


def _letters(asked: str, result: str) -> tuple[float, float]:
    """Whether a word of the question came back with the same letters, and backwards."""
    final = result.translate(_MARKS).replace(" ", "")
    if len(final) < _LEAST_LETTERS or not set(asked).issuperset(final):
        return 0.0, 0.0
    alike = {word for word in asked.translate(_MARKS).split() if len(word) == len(final)}
    bag = sorted(final)
    return float(any(sorted(word) == bag for word in alike)), float(final[::-1] in alike)


def _order(result: str) -> tuple[float, float, float]:
    items = [item.strip() for item in _SEPARATOR.split(result) if item.strip()]
    if len(items) < 2:
        return float(len(items)), 0.0, 0.0
    rising, falling = _runs(_values(items)) if _all_numbers(items) else _runs(items)
    return float(min(len(items), 20)), rising, falling


def _all_numbers(items: Sequence[str]) -> bool:
    return all(_NUMBER.fullmatch(item) and len(item) <= _MAX_DIGITS for item in items)


def _values(numbers: Sequence[str]) -> list[float]:
    return [float(number.replace(",", "")) for number in numbers if len(number) <= _MAX_DIGITS]


def _runs(items: Sequence[str] | Sequence[float]) -> tuple[float, float]:
    pairs = list(pairwise(items))
    return float(all(a <= b for a, b in pairs)), float(all(a >= b for a, b in pairs))  # type: ignore[operator]


def _rank(given: Sequence[float], said: Sequence[float]) -> float:
    """Where the result's last number stands among the question's: 0 smallest, 1 largest, −1
    nowhere."""
    if not given or not said:
        return -1.0
    below = sum(value < said[-1] for value in given)
    equal = sum(value == said[-1] for value in given)
    return (below + equal / 2) / len(given)


def _statements(asked: str, working: str) -> tuple[float, float]:
    """How many of the working's statements stand in the question, and how many do not."""
    told = " ".join(asked.split())
    kept = invented = 0
    for statement in _STATEMENT_END.split(working):
        words = statement.split()
        if len(words) < _LEAST_WORDS:
            continue
        if " ".join(words) in told:
            kept += 1
        else:
            invented += 1
    return min(float(kept), _MOST), min(float(invented), _MOST)


def _list_length(asked: str) -> float | None:
    """Items of the question's longest list, separated by commas."""
    longest = 0
    if asked.count(",") >= _LEAST_ITEMS - 1:
        longest = max(sum(map(bool, map(str.strip, part.split(","))))
                      for part in _LIST_END.split(asked))  # fmt: skip
    return float(longest) if longest >= _LEAST_ITEMS else None


def _agrees(expected: float | None, said: Sequence[float]) -> float:
    """1: the result's last number is it; −1: it is another; 0: nothing is expected, or said."""
    if expected is None or not said:
        return 0.0
    return 1.0 if abs(said[-1] - expected) <= 1e-6 * max(1.0, abs(expected)) else -1.0
