"""Streams of questions with an answer text each, of which it is known what it says.

    advising   university questions, slots filled; each answer names what it is about
    twins      the same questions with six values a slot; the answers name nothing, and differ in
               one number, sign, unit, name, negation, opposite, order: the hardest for a labeller
    banking77  a help page of four facts per intent; its sentences in any order
    models     grade-school problems in harmless wordings, answered by GPT-4 Turbo, Mixtral 8x7B or
               the authors: real answers, all with their steps. The same, if both are right.

A model has habits: of a third of the questions each answer is in its favourite wording, of a third
four in five are, of a third one in three; the others are in any.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.semantic_answers import KINDS, Fields, Half, Kind, help_of, help_said, word
from bench.semantic_streams import (
    HARMLESS,
    Questions,
    Stream,
    fill,
    kind_of_slot,
    numbered,
    slot_values,
)

HABITS = (1.0, 0.8, 0.33)
STYLES = 10_000


@dataclass(frozen=True, slots=True)
class Said:
    """`questions.answers` are the numbers of what is true, `texts` how it was said."""

    name: str
    questions: Questions
    texts: list[str]
    take: int

    def stream(self) -> Stream:
        return Stream(self.name, (self.questions,), self.take)


def _style(about: object, rng: random.Random) -> int:
    """The favourite style of a question, or any other."""
    own = random.Random(f"habit {about}")
    habit, favourite = own.choice(HABITS), own.randrange(STYLES)
    return favourite if rng.random() < habit else rng.randrange(STYLES)


def _said(name: str, rows: list[tuple[str, Any, str]], take: int) -> Said:
    """Rows of (question, what is true, answer); of equal questions the first stays."""
    questions = numbered((question, truth) for question, truth, _ in rows)
    first: dict[str, str] = {}
    for question, _, answer in rows:
        first.setdefault(question.strip(), answer)
    return Said(name, questions, list(first.values()), take)


# --------------------------------------------------------------------------- made answers


def _kind_for(query: int) -> Kind:
    return random.Random(f"kind {query}").choice(KINDS)


def _frozen(fields: Fields) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(fields.items()))


def advising(data: Path, half: Half, *, fillings: int = 6, pool: int = 9_000) -> Said:
    rng, styles = random.Random(f"advising {half}"), random.Random(f"styles {half}")
    queries = json.loads((data / "advising/advising.json").read_text())
    values = slot_values(queries)
    rows = []
    for number, query in enumerate(queries):
        kind = _kind_for(number)
        slots = sorted({slot for s in query["sentences"] for slot in s["variables"]})
        for _ in range(fillings):
            chosen = {
                s: rng.choice(values[kind_of_slot(s)]) for s in slots if kind_of_slot(s) in values
            }
            for sentence in query["sentences"]:
                text, used = fill(sentence, chosen)
                fields = kind.make(random.Random(f"{number} {used}"))
                subject = " ".join(value for _, value in used)
                answer = word(kind, fields, half, _style(number, styles), subject)
                rows.append((text, (kind.name, subject, _frozen(fields)), answer))
    rng.shuffle(rows)
    return _said("advising", rows[:pool], 4000)


def twins(data: Path, half: Half, *, pool: int = 9_000) -> Said:
    rng, styles = random.Random(f"twins {half}"), random.Random(f"styles {half}")
    queries = json.loads((data / "advising/advising.json").read_text())
    few = {k: rng.sample(v, min(len(v), 6)) for k, v in slot_values(queries).items()}
    sentences = [(n, s) for n, query in enumerate(queries) for s in query["sentences"]]
    rows = []
    for _ in range(pool):
        number, sentence = rng.choice(sentences)
        slots = [s for s in sentence["variables"] if few.get(kind_of_slot(s))]
        text, used = fill(sentence, {s: rng.choice(few[kind_of_slot(s)]) for s in slots})
        kind = _kind_for(number)
        fields = kind.make(random.Random(f"base {number}"))
        version = random.Random(f"{number} {used}")
        if version.random() < 2 / 3:
            fields = kind.twin(fields, version)
        answer = word(kind, fields, half, _style(number, styles))
        rows.append((text, (kind.name, _frozen(fields)), answer))
    return _said("twins", rows, 4000)


def banking77(data: Path, half: Half) -> Said:
    rng, styles = random.Random(f"banking {half}"), random.Random(f"styles {half}")
    rows = []
    for name in ("train.csv", "test.csv"):
        with (data / "banking77" / name).open(newline="") as file:
            for row in csv.DictReader(file):
                page = help_of(row["category"])
                answer = help_said(page, half, _style(page.topic, styles))
                rows.append((row["text"], page, answer))
    rng.shuffle(rows)
    return _said("banking77", rows[:9_000], 4000)


# --------------------------------------------------------------------------- real answers


def models(data: Path, half: Half) -> Said:
    """Every other problem is of the half that is published."""
    rng = random.Random(f"models {half}")
    solved = {}
    for line in (data / "gsm8k/test.jsonl").read_text().splitlines():
        problem = json.loads(line)
        solved[problem["question"].strip()] = problem["answer"]
    rows = []
    with (data / "routellm/gsm8k/gsm8k_responses.csv").open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if number % 2 == (half == "held"):
                rows += _told(number, row, solved, rng)
    rng.shuffle(rows)
    return _said("models", rows, 3000)


def _told(
    number: int, row: dict[str, str], solved: dict[str, str], rng: random.Random
) -> list[tuple[str, Any, str]]:
    """One problem in every harmless wording. A wrong answer is like no other."""
    question = row["prompt"].strip()
    answers = [(True, solved[question])] if question in solved else []
    models_asked = [name for name in row if f"{name}_response" in row]
    answers += [(row[name] == "True", row[f"{name}_response"].strip()) for name in models_asked]
    out = []
    for polite in HARMLESS:
        right, answer = rng.choice(answers)
        out.append((polite(question), (number, "" if right else answer), answer))
    return out


SAID: dict[str, Callable[[Path, Half], Said]] = {
    "advising": advising,
    "twins": twins,
    "banking77": banking77,
    "models": models,
}
