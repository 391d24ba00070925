"""Labelled requests: what both models answered, and how right each was.

A file of JSON lines, one request each:

    {"messages": [{"role": "user", "content": "…"}], "small": {"score": 1, "text": "…",
     "logprobs": [-0.1, …], "finish": "stop"}, "large": {"score": 1, "tokens": 9},
     "conversation": "c17"}

`prompt` may stand for `messages`. A score is true, false or a number in [0, 1]; a bare score may
stand for the object. Text and log-probabilities of the small answer are what the judge learns from;
without them only the decision before token 1 is calibrated. Rows of one `conversation` are never
split. `weight` is the inverse of the probability that a row was drawn by (1); rows that somebody
chose to tell (`"source": "feedback"`) teach the models and are kept out of the promise's test:
nobody knows how probable they were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cascade.judge import Answered
from engine.contract import Call, Json, Message, Part


class LabelsError(ValueError):
    """A row that cannot be used; names the line and the remedy."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """`small` and `large` in [0, 1]. `answer` is the small model's, where it was kept."""

    call: Call
    small: float
    large: float
    answer: Answered | None = None
    conversation: str = ""
    tokens: float = 0.0
    """Of the large model's answer; 0: not told."""
    weight: float = 1.0
    volunteered: bool = False


def read_labels(lines: Iterable[str]) -> list[Labelled]:
    """Empty lines are skipped. Raises LabelsError at the first row that is wrong."""
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line), number))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LabelsError(f"line {number}: {_told(error)}") from error
    return rows


def _row(raw: dict[str, Any], number: int) -> Labelled:
    small, large = _scored(raw["small"]), _scored(raw["large"])
    answer = None
    if "text" in small:
        logprobs = tuple(float(value) for value in small.get("logprobs") or ())
        answer = Answered(str(small["text"]), logprobs, small.get("finish", "stop"))
    conversation = str(raw.get("conversation", f"line {number}"))
    tokens = float(large.get("tokens", 0))
    weight = float(raw.get("weight", 1.0))
    if not 0.0 < weight < math.inf:
        raise ValueError(f"a weight must be above 0, not {weight}")
    return Labelled(
        _call(raw),
        _score(small),
        _score(large),
        answer,
        conversation,
        tokens,
        weight,
        raw.get("source") == "feedback",
    )


def _call(raw: dict[str, Any]) -> Call:
    if "prompt" in raw:
        return Call(kind="text", model="auto", scope="", prompt=str(raw["prompt"]))
    messages = tuple(
        Message(message["role"], (Part("text", str(message["content"])),))
        for message in raw["messages"]
    )
    if not messages:
        raise ValueError("messages is empty")
    fields = {
        name: Json(json.dumps(raw[name], sort_keys=True))
        for name in ("tools", "response_format")
        if raw.get(name) is not None
    }
    return Call(kind="chat", model="auto", scope="", messages=messages, **fields)  # type: ignore[arg-type]


def _scored(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"score": value}


def _score(side: dict[str, Any]) -> float:
    score = float(side["score"])
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"a score must lie in 0 … 1, not {score}")
    return score


def _told(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error})"
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing; a row holds messages (or prompt), small and large"
    return str(error)


def first_tokens(answer: Answered, tokens: int | None) -> Answered:
    """The answer as the judge sees it when `tokens` are held back. Where the text's tokens are not
    known one by one, the text is cut in proportion."""
    count = tokens_of(answer)
    if tokens is None or count <= tokens:
        return answer
    text = answer.text[: round(len(answer.text) * tokens / count)]
    return Answered(text, answer.logprobs[:tokens], None, answer.tool_arguments)


def tokens_of(answer: Answered) -> int:
    """How many tokens it has; about so many where nobody told."""
    return len(answer.logprobs) or max(1, len(answer.text) // 4)


def groups_of(rows: Sequence[Labelled]) -> list[int]:
    """A number per conversation, in order of appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(row.conversation, len(numbers)) for row in rows]
