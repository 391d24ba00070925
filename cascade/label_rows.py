"""Rows of labels, as shadow runs and feedback write them for labels.py, and whose they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from cascade.judge import Answered
from engine.contract import Call

Meant = Callable[[str, tuple[str, ...]], bool]
"""(scope, labels) → whether this is to be erased."""


@dataclass(frozen=True, slots=True)
class Grades:
    """How right each answer was, in [0, 1]."""

    small: float
    large: float


def write_label(
    call: Call,
    small: Answered,
    grades: Grades,
    *,
    large_tokens: int = 0,
    drawn: float = 1.0,
    answer_id: str = "",
    labels: tuple[str, ...] = (),
) -> str:
    """A row as labels.read_labels reads it. `drawn`: the probability; 0: it was volunteered, about
    `answer_id`. By its scope and `labels` it is erased (`row_is_meant`)."""
    row: dict[str, object] = {
        "small": {
            "score": grades.small,
            "text": small.text,
            "logprobs": [round(value, 4) for value in small.logprobs],
            "finish": small.finish,
        },
        "large": {"score": grades.large, "tokens": large_tokens},
        "conversation": _conversation(call),
        "source": "shadow" if drawn else "feedback",
        "weight": round(1.0 / (drawn or 1.0), 4),
        "scope": call.scope,
        "labels": labels,
    }
    if answer_id:
        row["answer_id"] = answer_id
    if call.kind == "text":
        row["prompt"] = call.prompt
    else:
        row["messages"] = [{"role": m.role, "content": m.text} for m in call.messages]
        row |= {
            name: json.loads(value)
            for name, value in (("tools", call.tools), ("response_format", call.response_format))
            if value is not None
        }
    return json.dumps(row, ensure_ascii=False)


def row_is_meant(row: str, meant: Meant) -> bool:
    """Whether a row is to be erased; never one that `write_label` did not write."""
    try:
        raw = json.loads(row)
        return meant(raw["scope"], tuple(raw["labels"]))
    except (ValueError, TypeError, KeyError):
        return False


def _conversation(call: Call) -> str:
    """Turns of one conversation begin with the same question."""
    first = next((m.text for m in call.messages if m.role == "user"), str(call.prompt))
    return hashlib.blake2b(first.encode("utf-8", "replace"), digest_size=8).hexdigest()
