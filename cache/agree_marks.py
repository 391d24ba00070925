"""What two answers have to share to the letter, because neither words nor an embedder see it.

`.5 mg` and `5 mg` have the same words and all but the same vector; so have `return !done` and
`return done`, `./tmp` and `/tmp`, `(2 + 3) * 4` and `2 + (3 * 4)`. Numbers are compared as they are
written, and formulas with brackets in their order. Code, commands and paths mean what they say to
the letter: of those only the same text is the same, and whether another would do is a judge's to
say.

Price: an answer that writes a number in another way, or has code in it, is seldom a label for a
hit. That costs hits, never the promise.
"""

from __future__ import annotations

import re
from typing import Final

_CODE: Final = re.compile(
    r"""
      `                                   # quoted, or fenced
    | [{}\[\]\\|]
    | [=!<>]=|&&|[-=]>
    | (?<!\w)![\w(]                       # not
    | \w_\w|\w\(\w*\)|\w\.\w+\(           # names, calls
    | ;[ \t]*$                            # the end of a statement
    | (?<!\S)(?:\.{1,2}|~)?/[\w.]         # paths
    | (?<!\S)\.[^\W\d]                    # files that begin with a dot
    | (?<!\S)--?[^\W\d_]                  # options
    """,
    re.VERBOSE | re.MULTILINE,
)
_NUMBER: Final = r"(?<!\w)\.*\d+(?:[.,:/]+\d+)*!?"
_FIGURE: Final = re.compile(_NUMBER)
_UNIT: Final = re.compile(r"\d\s?([^\W\d_]{1,3})\b")
_SIGNED: Final = re.compile(
    r"[-−+±~<>≤≥=$€£¥√^×÷*/]+(?=\s?\.?\d)|(?<=\d)\s?[%‰°$€£¥^×÷*/=<>≤≥+]", re.UNICODE
)
_BULLETS: Final = re.compile(r"^[ \t]*[-*+•>]+[ \t]+", re.MULTILINE)
_BRACKETED: Final = re.compile(r"\(\s*[-−]?[\d.]|\d\s*\)")
_FORMULA: Final = re.compile(_NUMBER + r"|[-−+*/^=×÷()]")


def holds_code(text: str) -> bool:
    """Whether something in it means what it says to the letter."""
    return _CODE.search(text) is not None


def tidy(text: str) -> str:
    """`text` without what may stand at the end of a line or of all of it and says nothing."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def same_figures(one: str, other: str) -> bool:
    """Whether both write the same numbers, in units that differ in no capital (mW, MW), and, where
    brackets hold numbers, the same formulas."""
    if set(_FIGURE.findall(one)) != set(_FIGURE.findall(other)):
        return False
    units, others = set(_UNIT.findall(one)), set(_UNIT.findall(other))
    if any(_recased(unit, others) for unit in units - others):
        return False
    if _BRACKETED.search(one) or _BRACKETED.search(other):
        return _FORMULA.findall(one) == _FORMULA.findall(other)
    return True


def same_signs(one: str, other: str) -> bool:
    """Whether both have the same signs beside their numbers: -5, 5 %, £5. A dash, a quoted line or
    a list is no sign."""
    return _signs(one) == _signs(other)


def _signs(text: str) -> set[str]:
    return {sign.strip() for sign in _SIGNED.findall(_BULLETS.sub("", text))}


def _recased(unit: str, others: set[str]) -> bool:
    return any(unit.casefold() == another.casefold() for another in others)
