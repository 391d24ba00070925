"""Do two answers say the same? Where the labels of the semantic cache come from.

Problem. A request that the model answers could also have been answered from the cache; comparing
the two answers labels that possible hit for free. But models word the same thing in many ways.

Choice. Cheap and sure tests first, each label marked with what it rests on:

    equal      the same JSON value; the same words in the same order, but for case, space,
               punctuation, markup and politeness if they hold no code
    facts      they do not say the same figures with the same signs, in one spelling; only one of
               them negates; one says yes and the other no
    meaning    the cosine of the two answers' embeddings is so low that they cannot be the same
    judge      a model decides all others, if one is given
    unclear    nothing decides: counted as wrong, which costs hits and never the promise

A mistake of this file is a mistake of the promise, so each test errs towards "wrong". Answers over
the embedder's window are compared by the words they share, under the same name "meaning".

Rejected: a high cosine for "the same". At .92 it took Friday for Monday, Laura Chen for Maria Chen,
"A before B" for "B before A" and 22 labs with 15 lectures for 15 with 22, the more often the longer
the answer: of pairs that differ so, up to half (bench/semantic_labels.py), and few said the same
that were not found otherwise. Whoever has no judge learns from answers in the same words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cache.agree_marks import holds_code, same_figures, same_signs, tidy
from cache.agree_words import core, says_yes_or_no
from cache.embed import EmbedError, Vector
from cache.replay import Recording
from cache.verify_facts import Facts, negations, read
from engine.contract import Delta

Source = Literal["equal", "facts", "meaning", "judge", "unclear"]

Judge = Callable[[str, str, str], Awaitable[bool | None]]
"""(question, fresh answer, cached answer) -> whether the cached one would do; None: cannot say."""

Embed = Callable[[str], Awaitable[Vector]]

DIFFERENT = 0.4
"""Cosine of answers below which no judge is asked. At most two in a hundred that say the same are
there; below .8 it is up to a third (bench/semantic_labels.py)."""


@dataclass(frozen=True, slots=True)
class Label:
    right: bool
    source: Source


def text_of(recording: Recording) -> str:
    deltas = (event for event in recording.events() if isinstance(event, Delta))
    return "".join(delta.payload for delta in deltas if delta.kind == "text")


def normal(text: str) -> str:
    """What two texts have in common that differ in nothing that says something. Signs are no
    punctuation: -5 is not 5."""
    return " ".join(re.findall(r"\w+|[^\w\s.,;:!?'\"’“”()…]", core(text).casefold()))


def _canonical(text: str) -> str | None:
    """One spelling per JSON value; None for what is no JSON. Numbers stay as they are written:
    as floats those of many digits would be their neighbours, and as Python values 1 is true."""
    try:
        value = json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_Number)
        return json.dumps(value, sort_keys=True, default=_written)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class _Number:
    written: str


def _written(number: _Number) -> dict[str, str]:
    return {"": number.written}


def at_a_glance(fresh: str, cached: str) -> Label | None:
    """A label that needs no model, or None. Of two texts of which one holds code, None says that
    only a judge can tell."""
    value = _canonical(fresh)
    if fresh == cached or (value is not None and value == _canonical(cached)):
        return Label(right=True, source="equal")
    if holds_code(fresh) or holds_code(cached):
        return Label(right=True, source="equal") if tidy(fresh) == tidy(cached) else None
    if not same_figures(fresh, cached):
        return Label(right=False, source="facts")
    if (words := normal(fresh)) and words == normal(cached):
        return Label(right=True, source="equal")
    return Label(right=False, source="facts") if _contradict(fresh, cached) else None


def _contradict(fresh: str, cached: str) -> bool:
    """Yes and no; other signs beside numbers; one negates oddly and the other nothing. Number words
    are for a judge: "first" and "once" count nothing."""
    if {says_yes_or_no(fresh), says_yes_or_no(cached)} == {"yes", "no"}:
        return True
    one, other = negations(read(fresh)), negations(read(cached))
    odd_against_none = min(one, other) == 0 and max(one, other) % 2 == 1
    return odd_against_none or not same_signs(fresh, cached)


def _overlap(one: Facts, other: Facts) -> float:
    union = one.bag | other.bag
    return len(one.bag & other.bag) / len(union) if union else 0.0


async def _likeness(fresh: str, cached: str, embed: Embed) -> float:
    """A cosine, or of texts over the embedder's window the share of words that both have."""
    try:
        return float(np.dot(await embed(fresh), await embed(cached)))
    except EmbedError:
        return _overlap(read(fresh), read(cached))


async def agree(
    question: str, fresh: str, cached: str, *, embed: Embed, judge: Judge | None = None
) -> Label:
    """Whether `cached` would have done where `fresh` was given."""
    seen = at_a_glance(fresh, cached)
    if seen is not None:
        return seen
    to_the_letter = holds_code(fresh) or holds_code(cached)
    if not to_the_letter and await _likeness(fresh, cached, embed) < DIFFERENT:
        return Label(right=False, source="meaning")
    said = await judge(question, fresh, cached) if judge is not None else None
    if said is None:
        return Label(right=False, source="unclear")
    return Label(right=said, source="judge")
