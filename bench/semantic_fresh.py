"""Streams on which nothing was tuned: made after every number in cache/verify*.py was fixed.

    facts        "What is the capital of Peru?" in six wordings a relation, for 60 countries, the
                 well-known ones more often: one word decides, and no number betrays it
    options      exam questions (MMLU) beside copies with their options in another order, which have
                 another letter for an answer, and copies with a greeting, which have the same
    slots-12     advising with twelve values a slot, drawn anew
    advising-30  advising with thirty sets of values a question, drawn anew
    zipf         banking77 and advising, a few answers asked for most of the time
    bursts       banking77, each intent in waves: neighbours in time are neighbours in meaning
    ramp         from banking77 to slots, a little more of it with each request
    turns        advising and slots by turns, a thousand requests each

Played like all others: `python -m bench.semantic --data FOLDER --streams fresh`.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.semantic_streams import (
    HARMLESS,
    Ints,
    Questions,
    Stream,
    advising,
    banking77,
    numbered,
    slots,
)

Order = Callable[[np.random.Generator, list[Ints], Ints], Ints]
"""(randomness, the indices of each part, the answer of each index) -> arrivals."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """Parts in an order of its own; otherwise as `Stream`."""

    name: str
    parts: tuple[Questions, ...]
    order: Order

    def draw(self, seed: int) -> Ints:
        sizes = [len(part.texts) for part in self.parts]
        starts = np.cumsum([0, *sizes[:-1]])
        indices = [start + np.arange(size) for start, size in zip(starts, sizes, strict=True)]
        answers = np.array(self.questions().answers)
        return self.order(np.random.default_rng(seed), indices, answers)

    def questions(self) -> Questions:
        return Stream(self.name, self.parts, 0).questions()


# --------------------------------------------------------------------------- orders


def popular(take: int) -> Order:
    """Answers by Zipf's law; which ones are popular differs by seed."""

    def order(rng: np.random.Generator, parts: list[Ints], answers: Ints) -> Ints:
        everything = np.concatenate(parts)
        rank = rng.permutation(int(answers.max()) + 1)
        weight = 1 / (1 + rank[answers[everything]])
        return rng.choice(everything, take, replace=False, p=weight / weight.sum())

    return order


def waves(take: int, width: float = 0.08) -> Order:
    """Each answer has its moment: its questions come near it, in a bell `width` of the whole."""

    def order(rng: np.random.Generator, parts: list[Ints], answers: Ints) -> Ints:
        chosen = rng.permutation(np.concatenate(parts))[:take]
        moment = rng.random(int(answers.max()) + 1)
        at = moment[answers[chosen]] + width * rng.standard_normal(take)
        return chosen[np.argsort(at)]

    return order


def _woven(rng: np.random.Generator, parts: list[Ints], second: Any) -> Ints:
    """From the second part where `second` is true, else from the first."""
    one, other = (rng.permutation(part) for part in parts)
    arrivals = np.empty(len(second), np.int64)
    arrivals[~second] = one[: int((~second).sum())]
    arrivals[second] = other[: int(second.sum())]
    return arrivals


def ramp(take: int) -> Order:
    return lambda rng, parts, _: _woven(rng, parts, rng.random(take) < np.linspace(0, 1, take))


def turns(take: int, length: int = 1000) -> Order:
    return lambda rng, parts, _: _woven(rng, parts, np.arange(take) // length % 2 == 1)


# --------------------------------------------------------------------------- facts and options


RELATIONS = {
    "capital": (
        *("What is the capital of {}?", "Which city is the capital of {}?"),
        *("Name the capital city of {}.", "capital of {}"),
        *("{}'s capital is which city?", "Tell me what the capital of {} is called"),
    ),
    "currency": (
        *("What is the currency of {}?", "Which currency is used in {}?"),
        *("What money do they use in {}?", "currency of {}"),
        *("How do people in {} pay, in which currency?", "Tell me the currency of {}"),
    ),
    "language": (
        *("What language is spoken in {}?", "Which is the official language of {}?"),
        *("What do people speak in {}?", "official language of {}"),
        *("In {}, which language do most people speak?", "Tell me the language of {}"),
    ),
    "people": (
        *("What is the population of {}?", "How many people live in {}?"),
        *("How many inhabitants does {} have?", "population of {}"),
        *("Tell me the number of people in {}", "How large is the population of {}?"),
    ),
    "area": (
        *("What is the area of {}?", "How large is {} in square kilometres?"),
        *("How big is the territory of {}?", "area of {} in km2"),
        *("Tell me the size of {} by area", "How many square kilometres does {} cover?"),
    ),
    "code": (
        *("What is the dialling code of {}?", "Which phone prefix does {} have?"),
        *("What country code do I dial to call {}?", "phone code of {}"),
        *("How do I call {} from abroad, with which code?", "Tell me the calling code for {}"),
    ),
    "neighbours": (
        *("Which countries border {}?", "What are the neighbours of {}?"),
        *("Name all countries that share a border with {}.", "countries next to {}"),
        *("With whom does {} have a land border?", "Tell me which states are next to {}"),
    ),
    "president": (
        *("Who leads the government of {}?", "Who is the head of government in {}?"),
        *("Name the head of the government of {}.", "head of government of {}"),
        *("Which person governs {}?", "Tell me who runs the government in {}"),
    ),
}  # fmt: skip

COUNTRIES = (
    "Argentina Australia Austria Bangladesh Belgium Bolivia Brazil Bulgaria Cameroon Canada Chile "
    "China Colombia Croatia Cuba Denmark Ecuador Egypt Estonia Ethiopia Finland France Germany "
    "Ghana Greece Hungary Iceland India Indonesia Iran Iraq Ireland Israel Italy Japan Jordan "
    "Kenya Latvia Libya Lithuania Malaysia Mali Mexico Morocco Nepal Niger Nigeria Norway Pakistan "
    "Peru Poland Portugal Romania Senegal Spain Sudan Sweden Turkey Uganda Vietnam"
).split()


def facts(_: Path) -> Questions:
    return numbered(
        (polite(wording.format(country)), (relation, country))
        for relation, wordings in RELATIONS.items()
        for wording in wordings
        for country in COUNTRIES
        for polite in HARMLESS[:4]
    )


def options(data: Path, *, bases: int = 700, seed: int = 11) -> Questions:
    """Each question in up to four orders of its options, each order in four harmless wordings."""
    rng = random.Random(seed)
    texts = []
    for path in sorted((data / "routellm/mmlu_responses").glob("*.csv")):
        with path.open(newline="") as file:
            texts += [row["prompt"] for row in csv.DictReader(file) if len(row["prompt"]) < 300]
    out = []
    for number, text in enumerate(rng.sample(texts, bases)):
        stem, _, rest = text.partition("\nA. ")
        choices = rest.removesuffix("\nAnswer:").split("\n")
        for version in range(4):
            told = "\n".join(
                f"{letter}. {choice.split('. ', 1)[-1]}"
                for letter, choice in zip("ABCD", choices, strict=False)
            )
            out += [(rng.choice(HARMLESS)(f"{stem}\n{told}"), (number, version)) for _ in range(4)]
            rng.shuffle(choices)
    return numbered(out)


FRESH: dict[str, Callable[[Path], Stream | Arranged]] = {
    "facts": lambda d: Arranged("facts", (facts(d),), popular(8000)),
    "options": lambda d: Stream("options", (options(d),), 8000),
    "slots-12": lambda d: Stream("slots-12", (slots(d, choices=12, seed=7),), 8000),
    "advising-30": lambda d: Stream("advising-30", (advising(d, fillings=30, seed=7),), 8000),
    "zipf": lambda d: Arranged("zipf", (banking77(d), advising(d, seed=7)), popular(8000)),
    "bursts": lambda d: Arranged("bursts", (banking77(d),), waves(8000)),
    "ramp": lambda d: Arranged("ramp", (banking77(d), slots(d, seed=7)), ramp(10_000)),
    "turns": lambda d: Arranged("turns", (advising(d, seed=7), slots(d, seed=7)), turns(10_000)),
}
