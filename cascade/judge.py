"""How sure is an answer: what the small model's own text and log-probabilities give away.

The judge turns an answer (or its first tokens, where a stream is held back) into a few numbers; the
fitted gain model weighs them together with what was known before. Two things need no weighing and
escalate at once: an answer that breaks the format that was asked for, and a plain refusal.

The engine hands the log-probabilities over with the tokens, so they cost nothing. Their quantiles
say more than their mean (Gupta et al., "Language Model Cascades"): one unsure token in a sure
answer is what a mean hides. Where a model gives none, the features are 0 and `has_logprobs` says
so. But a wrong answer may be as sure as a right one: what it does with the question's own words and
sums (rearranged.py, arithmetic.py) finds those.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade import rearranged
from cascade.arithmetic import check_result, check_sums
from cascade.schema import violation
from engine.contract import Call, FinishReason, Json

Floats = NDArray[np.float64]

AFTER = (
    "answer_log_chars",
    "answer_log_lines",
    "sums_right",
    "sums_wrong",
    "any_sum_wrong",
    "asked_sum_right",
    "asked_sum_wrong",
    "answer_numbers",
    "new_numbers",
    "unused_numbers",
    "result_fractional",
    "result_log_size",
    "result_negative",
    "result_in_question",
    "hedges",
    "refuses",
    "finished",
    "cut_by_length",
    "has_logprobs",
    "logprob_tokens",
    "logprob_mean",
    "logprob_min",
    "logprob_q10",
    "logprob_q25",
    "logprob_q50",
    "logprob_first",
    "logprob_low3",
    "logprob_last4_min",
    "logprob_unsure",
    *rearranged.NAMES,
)
_FINISHED = AFTER.index("finished")

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_HEDGE = re.compile(
    r"\b(?:however|assum\w+|unclear|not possible|not sure|impossible|i think|probably|perhaps"
    r"|might|maybe|approximately|can't|cannot|doesn't (?:say|specify)|not (?:given|specified))\b",
    re.IGNORECASE,
)
_HEDGES = (
    "however",
    "assum",
    "unclear",
    "possible",
    "not ",
    "i think",
    "probably",
    "perhaps",
    "might",
    "maybe",
    "approximately",
    "can't",
    "cannot",
    "doesn't ",
)
"""Each of _HEDGE's alternatives holds one of these."""
_REFUSAL = re.compile(
    r"^\W{0,4}(?:(?:i['’]?m|i am) (?:sorry|afraid|unable|not able)"
    r"|i (?:can['’]?t|cannot|do not|don['’]?t) (?:help|answer|know|assist|provide)"
    r"|sorry\b|as an ai\b|unfortunately, i\b)",
    re.IGNORECASE,
)
_UNSURE = -0.1
"""A probability below .9."""
_MAX_CHARS = 8_192


@dataclass(frozen=True, slots=True)
class Answered:
    """One choice of the small model's answer, as far as it has come. `finish` is None while it
    goes on. `logprobs` are natural logarithms, one per token, or empty."""

    text: str
    logprobs: tuple[float, ...] = ()
    finish: FinishReason | None = None
    tool_arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`broken` says what is wrong with the answer whatever its quality; empty: nothing."""

    broken: str
    features: Floats

    @property
    def ended(self) -> bool:
        return bool(self.features[_FINISHED])


def judge(call: Call, question: str, answer: Answered) -> Verdict:
    """The answer as numbers, [len(AFTER)], and whether its format is broken."""
    return Verdict(format_fault(call, answer), after(question, answer))


def format_fault(call: Call, answer: Answered) -> str:
    """What breaks the asked format, of an answer that has ended; a refusal counts at once."""
    if _REFUSAL.match(answer.text):
        return "the answer refuses"
    if answer.finish is None:
        return ""
    for arguments in answer.tool_arguments:
        if not _is_json(arguments):
            return "a tool call's arguments are not JSON"
    if answer.tool_arguments or call.response_format is None:
        return ""
    return _document_fault(call.response_format, answer)


def holds_whole(call: Call) -> bool:
    """Whether an answer is judged only when it is complete: half a document helps nobody."""
    return call.response_format is not None and _wanted(call.response_format) != "text"


def _wanted(response_format: Json) -> str:
    return str(json.loads(response_format).get("type", "text"))


def _document_fault(response_format: Json, answer: Answered) -> str:
    asked: dict[str, Any] = json.loads(response_format)
    if asked.get("type", "text") == "text":
        return ""
    if answer.finish == "length":
        return "the JSON was cut by the token limit"
    try:
        document = json.loads(answer.text)
    except ValueError:
        return "the answer is not JSON"
    if asked["type"] == "json_schema":
        return violation(document, asked.get("json_schema", {}).get("schema", {}))
    return "" if isinstance(document, dict) else "the answer is not a JSON object"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def after(question: str, answer: Answered) -> Floats:
    """[len(AFTER)], in that order."""
    text = answer.text[-_MAX_CHARS:].strip()
    sums, parts = check_sums(text), rearranged.parts_of(text)
    asked, said = _NUMBER.findall(question), _NUMBER.findall(text)
    asked_set, said_set = set(asked), set(said)
    return np.array(
        (
            math.log1p(len(text)),
            math.log1p(text.count("\n")),
            math.log1p(sums.right),
            math.log1p(sums.wrong),
            float(sums.wrong > 0),
            *_proof(question, parts.result, answer.finish is not None),
            math.log1p(len(said)),
            math.log1p(len(said_set - asked_set)),
            len(asked_set - said_set) / max(1, len(asked_set)),
            *_result(text, said, asked_set),
            math.log1p(_hedges(text)),
            float(_REFUSAL.match(text) is not None),
            float(answer.finish is not None),
            float(answer.finish == "length"),
            *_confidence(answer.logprobs),
            *rearranged.kept(question, parts),
        )
    )


def _hedges(text: str) -> int:
    """Substring searches cost a tenth of the expression, and most answers hold none. Beyond
    ASCII, letters that the expression takes for each other are not found so."""
    if text.isascii():
        small = text.lower()
        if not any(word in small for word in _HEDGES):
            return 0
    return len(_HEDGE.findall(text))


def _proof(question: str, result: str, ended: bool) -> tuple[float, float]:
    """Only an answer that has ended has a result."""
    right = check_result(question, result) if ended else None
    return float(right is True), float(right is False)


def _result(text: str, said: Sequence[str], asked: set[str]) -> tuple[float, float, float, float]:
    """The last number of the text: usually the result, where there is one."""
    if not said:
        return 0.0, 0.0, 0.0, 0.0
    last = said[-1].rstrip(",")
    value = float(last.replace(",", ""))
    before = text[: text.rindex(said[-1])]
    return (
        float(value != int(value)) if math.isfinite(value) else 0.0,
        min(math.log1p(value), 40.0),
        float(before.endswith("-") and not before[-2:-1].isalnum()),
        float(last in asked),
    )


def _confidence(logprobs: tuple[float, ...]) -> tuple[float, ...]:
    count = len(logprobs)
    if not count:
        return (0.0,) * 11
    order = sorted(logprobs)
    lowest = order[:3]
    return (
        1.0,
        math.log1p(count),
        sum(order) / count,
        max(order[0], -20.0),
        order[count // 10],
        order[count // 4],
        order[count // 2],
        logprobs[0],
        max(sum(lowest) / len(lowest), -20.0),
        max(min(logprobs[-4:]), -20.0),
        math.log1p(bisect_left(order, _UNSURE)),
    )
