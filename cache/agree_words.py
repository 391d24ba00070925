"""What an answer can be without and still say the same: politeness and markup.

`**Answer:** Sure! It meets on Monday.` says what `It meets on Monday` says. Everything else stays,
in its order: who instead of whom, on Monday instead of on Friday, before instead of after are one
word each, and an embedder hardly sees them.

Rejected: any wider list. "Here are the rooms of Weber:" is politeness until it names somebody; "is"
becomes "was", "you" becomes "we", and without articles vitamin A is a vitamin, and a few are few. A
lead is politeness only if a mark ends it: "Sure-fire ways" and "Of course not." stay.

Price: texts that say the same in other words are not found equal; that is for a judge.
"""

from __future__ import annotations

import re
from typing import Final

_MARKUP: Final = re.compile(
    r"""
      ^[ \t]*(?:[-*•]|\#{1,6})[ \t]+(?=["“'(*_]*[^\W\d_]{2})    # a list, a heading: of words
    | (?<![\w*])\*\*(?=\S)|(?<=\S)\*\*(?![\w*])               # bold
    """,
    re.VERBOSE | re.MULTILINE,
)
_LEAD: Final = re.compile(
    r"""
    \s*(?:
        (?:sure|certainly|of\ course|absolutely|gladly|hello|hi|thanks|thank\ you
        | (?:good|great)\ question
        | (?:thanks|thank\ you)\ for\ (?:asking|your\ (?:question|message|patience)))(?:\s*[!.]+|,)
    | (?:the\ |final\ |short\ )?answer\s*:
    )\s+
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CLOSE: Final = re.compile(
    r"""
    (?<=[.!?\n])\s*(?:
      (?:please\ )?(?:let\ (?:me|us)\ know|feel\ free\ to\ (?:ask|reach\ out))
      (?:\ if\ (?:you\ (?:need|have|want)|there\ is)
      \ (?:anything\ else|any\ (?:other\ |more\ |further\ )?(?:questions|help|assistance)))?
    | (?:i\ )?hope\ (?:this|that|it)\ helps(?:\ you)?
    )\s*[.!]*\s*$
    """,
    re.VERBOSE | re.IGNORECASE,
)
_FIRST_WORD: Final = re.compile(r"[^\W\d_]+")


def core(text: str) -> str:
    """`text` without markup, polite beginnings and polite ends, unless nothing else is there."""
    left = _MARKUP.sub("", text)
    for _ in range(3):
        shorter = _CLOSE.sub("", _LEAD.sub("", left, count=1) if _LEAD.match(left) else left)
        if shorter == left or not shorter.strip():
            break
        left = shorter
    return left


def says_yes_or_no(text: str) -> str:
    """The word, if an answer begins with it; else nothing."""
    first = _FIRST_WORD.search(core(text))
    word = first[0].casefold() if first is not None else ""
    return word if word in {"yes", "no"} else ""
