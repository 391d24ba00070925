"""Streams of questions of which it is known which have the same answer.

    advising     205 SQL queries as questions, slots filled: other values are another answer
    banking77    customer questions of 77 intents: one intent, one answer
    slots        advising again, but all questions share six values a slot: nearly every near
                 neighbour is wrong (adversarial near-duplicates of the natural kind)
    hostile      grade-school problems, each beside copies with another number or an opposite word
                 (wrong) and copies with a greeting or in lower case (right)
    arena-hard   500 prompts, all different: every hit is wrong
    gsm8k        8,792 problems, all different, much alike
    pairs        GPTCache's own sample: 999 pairs, so half of the questions can hit at most
    mixture      banking77 and gsm8k, half and half
    drift        banking77, then advising
    drift-near   advising, then slots: the same sentences, and suddenly near is wrong

A seed draws and shuffles a stream from a pool that is larger than it, so that seeds differ in
their questions and slot values too. Exact repeats are left out: the exact cache has them.
The folder that holds the data sets is an argument; each set is named with its licence in the
README of tests/data or of the folder itself.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Questions:
    """`answers[i]` is the same number for questions that have the same answer."""

    texts: list[str]
    answers: list[int]


@dataclass(frozen=True, slots=True)
class Stream:
    """`parts` are drawn from one after the other, `take` questions each, then shuffled all
    together if `mixed`."""

    name: str
    parts: tuple[Questions, ...]
    take: int
    mixed: bool = False

    def draw(self, seed: int) -> Ints:
        """Indices into the joined parts, in the order of arrival."""
        rng = np.random.default_rng(seed)
        start, drawn = 0, []
        for part in self.parts:
            drawn.append(start + rng.permutation(len(part.texts))[: self.take])
            start += len(part.texts)
        order = np.concatenate(drawn)
        return rng.permutation(order) if self.mixed else order

    def questions(self) -> Questions:
        """The joined parts; answers of different parts are different."""
        texts, answers, offset = [], [], 0
        for part in self.parts:
            texts += part.texts
            answers += [answer + offset for answer in part.answers]
            offset += max(part.answers) + 1
        return Questions(texts, answers)


def numbered(pairs: Iterable[tuple[str, Any]]) -> Questions:
    """Distinct texts, each with a number for its answer."""
    kept: dict[str, Any] = {}
    for text, answer in pairs:
        kept.setdefault(text.strip(), answer)
    numbers: dict[Any, int] = {}
    return Questions(list(kept), [numbers.setdefault(a, len(numbers)) for a in kept.values()])


def banking77(data: Path) -> Questions:
    pairs = []
    for name in ("train.csv", "test.csv"):
        with (data / "banking77" / name).open(newline="") as file:
            pairs += [(row["text"], row["category"]) for row in csv.DictReader(file)]
    return numbered(pairs)


def arena_hard(data: Path) -> Questions:
    lines = (data / "arena-hard/question.jsonl").read_text().splitlines()
    return numbered((json.loads(line)["turns"][0]["content"], n) for n, line in enumerate(lines))


def gsm8k(data: Path) -> Questions:
    files = (data / "gsm8k" / name for name in ("train.jsonl", "test.jsonl"))
    texts = [json.loads(line)["question"] for file in files for line in file.open()]
    return numbered((text, number) for number, text in enumerate(texts))


def pairs(data: Path) -> Questions:
    rows = json.loads((data / "gptcache-mock/mock_data.json").read_text())
    return numbered((row[side], n) for n, row in enumerate(rows) for side in ("origin", "similar"))


# --------------------------------------------------------------------------- slots


def kind_of_slot(slot: str) -> str:
    return slot.rstrip("0123456789")


def slot_values(queries: list[Any]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for query in queries:
        for sentence in query["sentences"]:
            for slot, value in sentence["variables"].items():
                found.setdefault(kind_of_slot(slot), set()).update({value} - {""})
    return {kind: sorted(values) for kind, values in found.items() if values}


def fill(sentence: Any, values: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    text, used = sentence["text"], []
    for slot in sorted(sentence["variables"], key=len, reverse=True):
        pattern = rf"\b{re.escape(slot)}\b"
        if slot in values and re.search(pattern, text):
            text = re.sub(pattern, values[slot], text)
            used.append((slot, values[slot]))
    return text, tuple(sorted(used))


def advising(data: Path, *, fillings: int = 10, pool: int = 16_000, seed: int = 0) -> Questions:
    """Each query gets `fillings` sets of slot values, drawn from all that the data has."""
    rng = random.Random(seed)
    queries = json.loads((data / "advising/advising.json").read_text())
    values = slot_values(queries)
    out = []
    for number, query in enumerate(queries):
        slots = sorted({slot for s in query["sentences"] for slot in s["variables"]})
        for _ in range(fillings):
            chosen = {
                s: rng.choice(values[kind_of_slot(s)]) for s in slots if kind_of_slot(s) in values
            }
            for sentence in query["sentences"]:
                text, used = fill(sentence, chosen)
                out.append((text, (number, used)))
    rng.shuffle(out)
    return numbered(out[: pool + pool // 20])


def slots(data: Path, *, choices: int = 6, pool: int = 16_000, seed: int = 0) -> Questions:
    """Every slot of every question takes one of the same few values, the first ones more often."""
    rng = random.Random(seed)
    queries = json.loads((data / "advising/advising.json").read_text())
    few = {
        kind: rng.sample(values, min(len(values), choices))
        for kind, values in slot_values(queries).items()
    }
    sentences = [(n, s) for n, query in enumerate(queries) for s in query["sentences"]]
    out: dict[str, Any] = {}
    while len(out) < pool:
        number, sentence = rng.choice(sentences)
        chosen = {}
        for slot in sentence["variables"]:
            values = few.get(kind_of_slot(slot), [])
            if values:
                ranks = [1 / (rank + 1) for rank in range(len(values))]
                chosen[slot] = rng.choices(values, ranks)[0]
        text, used = fill(sentence, chosen)
        out.setdefault(text, (number, used))
    return numbered(out.items())


# --------------------------------------------------------------------------- hostile edits


OPPOSITES = (
    "more/fewer less/more before/after first/last gave/received buy/sell bought/sold "
    "increase/decrease half/twice left/used each/all"
).split()

HARMLESS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    lambda text: "Please help: " + text,
    lambda text: "Hi! " + text,
    str.lower,
    lambda text: text + " Thanks in advance.",
    lambda text: "Question: " + text + " Explain.",
)


def hostile(data: Path, *, bases: int = 700, seed: int = 0) -> Questions:
    rng = random.Random(seed)
    short = [text for text in gsm8k(data).texts if len(text) < 260]
    out = []
    for number, text in enumerate(rng.sample(short, bases)):
        for version, changed in enumerate([text, *_twisted(text, rng)]):
            out += [(rng.choice(HARMLESS)(changed), (number, version)) for _ in range(4)]
    return numbered(out)


def _twisted(text: str, rng: random.Random) -> list[str]:
    """Up to three copies that ask something else in nearly the same words."""
    numbers = re.findall(r"\b\d+\b", text)
    twisted = [
        re.sub(rf"\b{old}\b", str(int(old) + rng.randint(1, 9)), text, count=1)
        for old in rng.sample(numbers, min(2, len(numbers)))
    ]
    for pair in OPPOSITES:
        word, opposite = pair.split("/")
        changed = re.sub(rf"\b{word}\b", opposite, text, count=1)
        if changed != text:
            return [*twisted, changed]
    return twisted


# --------------------------------------------------------------------------- all of them


def _one(name: str, take: int, source: Callable[[Path], Questions]) -> Callable[[Path], Stream]:
    return lambda data: Stream(name, (source(data),), take)


STREAMS: dict[str, Callable[[Path], Stream]] = {
    "advising": _one("advising", 8000, advising),
    "banking77": _one("banking77", 6000, banking77),
    "slots": _one("slots", 8000, slots),
    "hostile": _one("hostile", 8000, hostile),
    "arena-hard": _one("arena-hard", 500, arena_hard),
    "gsm8k": _one("gsm8k", 8000, gsm8k),
    "pairs": _one("pairs", 2000, pairs),
    "mixture": lambda d: Stream("mixture", (banking77(d), gsm8k(d)), 4000, mixed=True),
    "drift": lambda d: Stream("drift", (banking77(d), advising(d)), 4000),
    "drift-near": lambda d: Stream("drift-near", (advising(d), slots(d)), 4000),
}
