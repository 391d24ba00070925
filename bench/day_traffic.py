"""A day of four tenants, as requests with their times and with what can be checked of the answers.

    support   banking77: customers' questions of 77 intents, in their own words; popular intents
              more often (Zipf, exponent 1), some word for word again. One shared system prompt.
              Checkable: a cached answer is right if it was given to a question of the same intent.
    advisor   advising: questions about courses with their slots filled, few values a slot, so that
              near is often wrong. The same check: same query and same values.
    tutor     graded tasks of all five levels, held out from training; a class works on the same
              sheet, so one task is asked by several pupils (Zipf, exponent .8). Checkable exactly.
    chat      MT-bench's two-turn prompts, continued for two more turns. Not checkable; it has
              what a prefix tree is for.

Beside them, bursts: a page that is opened by many at once sends one question 20 times in the same
moment. Arrivals are those of Azure's conversation trace, scaled to the length of the replay, so
that they clump as real ones do.

Shares of the traffic, exponents and lengths were written down before the first run and not changed
after it.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from bench.semantic_streams import Questions, banking77, slots
from demo.tasks import evaluation_rows

T = TypeVar("T")

SHARES = {"support": 0.40, "advisor": 0.15, "tutor": 0.35, "chat": 0.10}
"""Of the requests that are no burst."""
BURSTS, BURST_SIZE = 10, 20
MORE_TURNS = ("Say that in one sentence.", "Thank you. What should I read next?")
SYSTEM = {
    "support": (
        "You are the assistant of a bank. Answer questions about cards, transfers, top-ups, fees, "
        "exchange rates and identity checks. Be short and friendly. Never ask for a PIN or a "
        "password. If you do not know, say that a colleague will call back."
    ),
    "advisor": (
        "You help students of a university to choose courses. You know courses, instructors, "
        "semesters, requirements and credits. Answer in one or two sentences."
    ),
    "tutor": "",
    "chat": "You are a helpful assistant. Keep every answer under fifty words.",
}
MAX_TOKENS = {"support": 48, "advisor": 48, "tutor": 160, "chat": 64}
TENANTS = tuple(SHARES)


@dataclass(frozen=True, slots=True)
class Visit:
    """One caller: the turns of a conversation, or a question sent `copies` times at once.

    `meaning` is the same for questions that have the same answer (support, advisor); `answer` is
    what a graded task has to be answered with (tutor)."""

    at: float
    """Seconds since the start of the replay."""
    tenant: str
    turns: tuple[str, ...]
    copies: int = 1
    meaning: tuple[str, int] | None = None
    answer: str | None = None
    level: int = 0


def days_of(data: Path, days: int, requests: int, length_s: float, seed: int) -> list[list[Visit]]:
    """Days of about `requests` requests over `length_s` seconds, in order of arrival. What is
    popular on one is popular on the others."""
    rng = random.Random(seed)
    singles = requests - BURSTS * BURST_SIZE
    draws: dict[str, Callable[[], Visit]] = {
        "support": _asker("support", banking77(data), rng),
        "advisor": _asker("advisor", slots(data), rng),
        "tutor": _pupil(rng, tasks=max(1, int(singles * SHARES["tutor"] / 2))),
        "chat": _talker(data, rng),
    }
    return [_day(draws, data, singles, length_s, rng) for _ in range(days)]


def _day(
    draws: dict[str, Callable[[], Visit]],
    data: Path,
    singles: int,
    length_s: float,
    rng: random.Random,
) -> list[Visit]:
    visits: list[Visit] = []
    asked = 0
    while asked < singles:
        visit = draws[rng.choices(TENANTS, list(SHARES.values()))[0]]()
        visits.append(visit)
        asked += len(visit.turns)
    pages = [draws["support"]() for _ in range(BURSTS)]
    visits += [replace(page, copies=BURST_SIZE) for page in pages]
    rng.shuffle(visits)
    times = _arrivals(data, len(visits), length_s, rng)
    return [replace(visit, at=time) for visit, time in zip(visits, times, strict=True)]


def zipf(items: Sequence[T], exponent: float, rng: random.Random) -> Iterator[T]:
    """Draws without end: the r-th of a shuffled list comes up 1 / r^exponent as often."""
    order = rng.sample(items, len(items))
    weights = [1 / rank**exponent for rank in range(1, len(order) + 1)]
    while True:
        yield from rng.choices(order, weights, k=256)


def _asker(tenant: str, questions: Questions, rng: random.Random) -> Callable[[], Visit]:
    """First what is wanted, by popularity, then in whose words."""
    by_answer: dict[int, list[str]] = {}
    for text, answer in zip(questions.texts, questions.answers, strict=True):
        by_answer.setdefault(answer, []).append(text)
    wanted = zipf(list(by_answer), 1.0, rng)
    words = {a: zipf(texts, 0.5, rng) for a, texts in by_answer.items()}

    def draw() -> Visit:
        answer = next(wanted)
        return Visit(0.0, tenant, (next(words[answer]),), meaning=(tenant, answer))

    return draw


def _pupil(rng: random.Random, tasks: int) -> Callable[[], Visit]:
    rows = list(evaluation_rows(rng.randrange(1 << 30), per_cell=-(-tasks // 80)))
    sheet: Iterator[Any] = zipf(rng.sample(rows, min(tasks, len(rows))), 0.8, rng)

    def draw() -> Visit:
        row = next(sheet)
        question = row["messages"][0]["content"]
        return Visit(0.0, "tutor", (question,), answer=row["answer"], level=row["level"])

    return draw


def _talker(data: Path, rng: random.Random) -> Callable[[], Visit]:
    lines = (data / "traces/mt_bench/question.jsonl").read_text("utf-8").splitlines()
    chats = [tuple(json.loads(line)["turns"]) for line in lines]

    def draw() -> Visit:
        return Visit(0.0, "chat", (*rng.choice(chats), *MORE_TURNS))

    return draw


def _arrivals(data: Path, count: int, length_s: float, rng: random.Random) -> list[float]:
    """A run of consecutive arrivals of the trace, stretched to `length_s`."""
    with (data / "traces/azure/AzureLLMInferenceTrace_conv.csv").open(newline="") as file:
        stamps = [row["TIMESTAMP"][:26] for row in csv.DictReader(file)]
    first = rng.randrange(len(stamps) - count)
    times = [datetime.fromisoformat(stamp) for stamp in stamps[first : first + count]]
    span = (times[-1] - times[0]).total_seconds()
    return [(time - times[0]).total_seconds() / span * length_s for time in times]
