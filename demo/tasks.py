"""Graded tasks with exactly checkable answers: 18 families at five levels of difficulty.

They are the labels that the cascade is measured with, and the part of the training data that never
runs out. A reply is the answer alone, or short working that ends in "Answer: <answer>".

Training and evaluation share no question: `held_out` decides by a hash. Exceptions, whose question
space is too small to hold any out: level 1 (but of mul, count and sequence), geo and element
(closed-book facts), units 2-3 and dates 2. They test recall.

usage: python -m demo.tasks OUT.jsonl ROWS SEED train|eval     (eval: ROWS per family and level)
"""

import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.taskset.arithmetic import add, compare, mul, sequence, story
from demo.taskset.facts import dates, element, geo, units
from demo.taskset.item import Family
from demo.taskset.reading import extract, logic, recall, track
from demo.taskset.words import cipher, count, form, reverse, sort

FAMILIES: dict[str, Family] = {
    "add": add,
    "mul": mul,
    "story": story,
    "reverse": reverse,
    "count": count,
    "sort": sort,
    "sequence": sequence,
    "geo": geo,
    "element": element,
    "units": units,
    "dates": dates,
    "extract": extract,
    "recall": recall,
    "track": track,
    "cipher": cipher,
    "logic": logic,
    "compare": compare,
    "form": form,
}
LEVELS = (1, 2, 3, 4, 5)
NESTED = {"mul", "count", "sequence"}  # their level 1 questions can also come up at level 2
SMALL = {("units", 2), ("units", 3), ("dates", 2)}
CLOSED_BOOK = {"geo", "element"}

Row = dict[str, Any]


def normal(s: str) -> str:
    return re.sub(r"\s+", " ", s.strip().strip("`*").rstrip(".").strip()).lower()


def check(reply: str, answer: str) -> bool:
    """Exact match after light normalising: the text after the last 'Answer:', else all of it."""
    found = re.findall(r"Answer:\s*(.*)", reply)
    return normal(found[-1] if found else reply) == normal(answer)


def held_out(family: str, question: str) -> bool:
    """One question in forty belongs to evaluation, whichever run draws it."""
    return hashlib.sha1((family + question).encode()).digest()[0] % 40 == 0


def row(r: random.Random, family: str, level: int, split: str) -> Row:
    """One task of the split, as a chat row."""
    closed = (
        family in CLOSED_BOOK or (level == 1 and family not in NESTED) or (family, level) in SMALL
    )
    for _ in range(2000):
        item = FAMILIES[family](r, level)
        if closed or held_out(family, item.question) == (split == "eval"):
            break
    reply = f"{item.working}\nAnswer: {item.answer}" if item.working else item.answer
    return {
        "messages": [
            {"role": "user", "content": item.question},
            {"role": "assistant", "content": reply},
        ],
        "source": "tasks",
        "family": family,
        "level": level,
        "answer": item.answer,
    }


def training_rows(seed: int, rows: int, weights: tuple[float, ...]) -> Iterator[Row]:
    """Rows for training; `weights` says how often each level comes up."""
    r = random.Random(seed)
    names = list(FAMILIES)
    for _ in range(rows):
        yield row(r, r.choice(names), r.choices(LEVELS, weights)[0], "train")


def evaluation_rows(seed: int, per_cell: int) -> Iterator[Row]:
    """Different held-out questions for every family and level."""
    r = random.Random(seed)
    seen: set[str] = set()
    for family in FAMILIES:
        for level in LEVELS:
            got = 0
            for _ in range(per_cell * 50):
                d = row(r, family, level, "eval")
                question = d["messages"][0]["content"]
                if question in seen:
                    continue
                seen.add(question)
                got += 1
                yield d
                if got == per_cell:
                    break


def main(out: str, rows: str, seed: str, split: str) -> None:
    made = (
        evaluation_rows(int(seed), int(rows))
        if split == "eval"
        else training_rows(int(seed), int(rows), (2, 3, 3, 3, 2))
    )
    with Path(out).open("w", encoding="utf8") as f:
        f.writelines(json.dumps(d, ensure_ascii=False) + "\n" for d in made)


if __name__ == "__main__":
    main(*sys.argv[1:5])
