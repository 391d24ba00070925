"""Labelled requests: what both models answered, and how right each was.

A file of JSON lines, one request each:

    {"messages": [{"role": "user", "content": "…"}], "small": {"score": 1, "text": "…",
     "logprobs": [-0.1, …], "finish": "stop"}, "large": {"score": 1, "tokens": 9},
     "conversation": "c17"}

`prompt` may stand for `messages`. A score is true, false or a number in [0, 1]; a bare score may
stand for the object. Text and log-probabilities of the small answer are what the judge learns from;
without them only the decision before token 1 is calibrated. Rows of one `conversation` are never
split. Of rows with one `answer_id` (feedback that was given again) the last one counts. `weight` is
the inverse of the probability that a row was drawn by (1); rows that somebody chose to tell
(`"source": "feedback"`) teach the models and are kept out of the promise's test: nobody knows how
probable they were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cascade.judge import Answered
from engine.contract import Call, FinishReason, Json, Message, Part

HOLDS = "messages (or prompt), small and large"
FINISHES = ("stop", "length", "tool_calls", "content_filter")
ROLES = ("system", "developer", "user", "assistant", "tool")


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
    rows: dict[str, Labelled] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            raw = _object(line)
            key = f"answer {raw['answer_id']}" if raw.get("answer_id") else f"line {number}"
            rows.pop(key, None)
            rows[key] = _row(raw, number)
        except ValueError as error:
            raise LabelsError(f"line {number}: {error}. Mend the line or take it out") from error
    return list(rows.values())


def _object(line: str) -> dict[str, Any]:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(raw, dict):
        raise ValueError(f"a row is a JSON object with {HOLDS}, not {_kind(raw)}")  # noqa: TRY004
    return raw


def _row(raw: dict[str, Any], number: int) -> Labelled:
    small, large = _side(raw, "small"), _side(raw, "large")
    weight = _number(raw.get("weight", 1.0), "weight")
    if not 0.0 < weight < math.inf:
        raise ValueError(f"a weight must be above 0, not {weight}")
    return Labelled(
        _call(raw),
        _score(small, "small"),
        _score(large, "large"),
        _answer(small),
        str(raw.get("conversation", f"line {number}")),
        _number(large.get("tokens") or 0, "large.tokens"),
        weight,
        raw.get("source") == "feedback",
    )


def _side(raw: dict[str, Any], name: str) -> dict[str, Any]:
    if raw.get(name) is None:
        raise ValueError(f"{name!r} is missing; a row holds {HOLDS}")
    return raw[name] if isinstance(raw[name], dict) else {"score": raw[name]}


def _score(side: dict[str, Any], name: str) -> float:
    if side.get("score") is None:
        raise ValueError(f"{name}.score is missing: true, false or a number in 0 … 1")
    score = _number(side["score"], f"{name}.score")
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"{name}.score must lie in 0 … 1, not {score}")
    return score


def _answer(small: dict[str, Any]) -> Answered | None:
    """The small model's, where it was kept."""
    text, logprobs = small.get("text"), small.get("logprobs") or []
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"small.text must be text, not {_kind(text)}")  # noqa: TRY004
    if not isinstance(logprobs, list):
        raise ValueError(f"small.logprobs must be a list of numbers, not {_kind(logprobs)}")  # noqa: TRY004
    finish: FinishReason = small.get("finish") or "stop"
    if finish not in FINISHES:
        raise ValueError(f"small.finish must be one of {', '.join(FINISHES)}, not {finish!r}")
    return Answered(text, tuple(_number(one, "small.logprobs") for one in logprobs), finish)


def _call(raw: dict[str, Any]) -> Call:
    if raw.get("prompt") is not None:
        if not isinstance(raw["prompt"], str):
            raise ValueError(f"prompt must be text, not {_kind(raw['prompt'])}")
        return Call(kind="text", model="auto", scope="", prompt=raw["prompt"])
    messages = raw.get("messages")
    if messages is None:
        raise ValueError(f"'messages' is missing; a row holds {HOLDS}")
    if not isinstance(messages, list) or not messages:
        told = "messages is empty" if messages == [] else f"messages is {_kind(messages)}"
        raise ValueError(f'{told}; it must be a list of {{"role": …, "content": …}}')
    fields = {
        name: Json(json.dumps(raw[name], sort_keys=True))
        for name in ("tools", "response_format")
        if raw.get(name) is not None
    }
    said = tuple(_message(message) for message in messages)
    return Call(kind="chat", model="auto", scope="", messages=said, **fields)  # type: ignore[arg-type]


def _message(raw: Any) -> Message:
    if not isinstance(raw, dict) or raw.get("role") not in ROLES:
        raise ValueError(f'a message needs a "role": {", ".join(ROLES)}')
    content = raw.get("content")
    if content is None and raw.get("tool_calls"):
        content = ""
    if isinstance(content, list):
        pieces = [one.get("text") if isinstance(one, dict) else None for one in content]
        said = [one for one in pieces if isinstance(one, str)]
        content = "".join(said) if len(said) == len(pieces) else None
    if not isinstance(content, str):
        found = _kind(raw.get("content"))
        raise ValueError(f'a message needs a "content" of text, not {found}')  # noqa: TRY004
    return Message(raw["role"], (Part("text", content),))


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, not {_kind(value)}")  # noqa: TRY004
    return float(value)


def _kind(value: Any) -> str:
    """What stands there, short enough for a line."""
    told = json.dumps(value, ensure_ascii=False)
    return told if len(told) <= 40 else f"{told[:40]}…"


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
