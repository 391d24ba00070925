"""Why a request was a hit or a miss, in words: a record of the account for people.

One sentence first (`verdict`), then what each layer said, outermost first. It holds names and
numbers only; prompts and answers are not in the account.
"""

from __future__ import annotations

from typing import Any

from engine.contract import CacheStatus, Waste
from gateway.errors import CLIENT_GONE
from gateway.observe.ledger import NOBODY, Record
from gateway.observe.rollup import JOINED, OK, Money, Prices, Sum

_FORWARDED = {
    "miss": "nothing fitting was stored",
    "stale": "what was stored is older than the caller allows",
    "request": "the caller's Cache-Control asked for a fresh answer",
    "bypass": "this request may not be answered from here",
}
_NAMES = {"exact": "Exact cache", "semantic": "Semantic cache"}
_REFUSED = {
    400: "was refused: it could not be understood",
    401: "was refused: no good key",
    403: "was refused by the tenant's policy",
    404: "asked for what there is not",
    408: "ran out of time",
    413: "was refused: too large",
    429: "was refused: over the tenant's limit",
    CLIENT_GONE: "was given up by its caller",
    503: "was refused: the gateway had too much to do",
    504: "was to be answered from the cache only, and was not in it",
}


def explain(record: Record, prices: Prices) -> dict[str, Any]:
    """What became of one call, in words and money (nano-US-dollars)."""
    return {
        "verdict": verdict(record),
        "story": story(record),
        "money_nano": money_of(record, prices),
    }


def layers_of(record: Record) -> set[str]:
    """The layers that decided what became of a call: by a choice, or by answering it."""
    found = {one.layer for one in record.decisions}
    found |= {status.layer for status in record.cache if status.hit}
    if record.origin == JOINED or any(status.collapsed for status in record.cache):
        found.add("join")
    return found


def why(record: Record) -> str:
    """The shortest reason that says something."""
    if record.status != OK:
        return verdict(record)
    if record.decisions and not any(status.hit for status in record.cache):
        last = record.decisions[-1]
        return f"{last.layer}: {last.choice} · {last.reason}"
    asked = [_result(status) for status in record.cache]
    return " · ".join(asked) or f"asked for {record.model} by name"


def verdict(record: Record) -> str:
    """What became of it, as one sentence."""
    if record.status != OK:
        said = _REFUSED.get(record.status, f"failed with status {record.status}")
        return f"The request {said}."
    if record.origin == "exact":
        return "Hit: the same request was answered before, word for word. Nothing was computed."
    if record.origin == "semantic":
        return "Hit: a question that means the same was answered before. Nothing was computed."
    if record.origin == JOINED:
        if record.usage.computed_tokens:
            return "Shared: it joined the same request in flight, and inherited it."
        return "Shared: the same request was in flight, and its answer was given to both."
    saved = record.usage.cached_tokens
    reused = f" {saved} prompt tokens were already in the prefix tree." if saved else ""
    return f"Miss: {record.model} computed the answer.{reused}"


def story(record: Record) -> list[dict[str, str]]:
    """What each layer said."""
    told = [
        {
            "layer": _NAMES[status.layer],
            "outcome": _result(status),
            "text": _of_cache(status),
        }
        for status in record.cache
    ]
    told += [
        {"layer": one.layer.capitalize(), "outcome": one.choice, "text": one.reason}
        for one in record.decisions
    ]
    told += [
        {
            "layer": "Waste",
            "outcome": one.model,
            "text": _wasted(one),
        }
        for one in record.wasted
    ]
    if record.origin != NOBODY and record.status == OK:
        told.append({"layer": "Answer", "outcome": record.origin, "text": verdict(record)})
    return told


def _wasted(one: Waste) -> str:
    usage, about = one.usage, "about " if one.estimated else ""
    reused = f" ({usage.cached_tokens} of them were in the prefix tree)"
    return (
        f"{about}{usage.prompt_tokens} prompt tokens{reused if usage.cached_tokens else ''} and "
        f"{about}{usage.completion_tokens} of an answer: {one.why}"
    )


def money_of(record: Record, prices: Prices) -> dict[str, Any]:
    """This request's line in the account."""
    one = Sum()
    one.add(record)
    parts = [money for _, money in one.money((record.tenant, record.model, record.origin), prices)]
    return {
        "counterfactual": sum(part.counterfactual for part in parts),
        "spent": sum(part.spent for part in parts),
        "waste": sum(part.waste for part in parts),
        "avoided": _avoided(parts),
    }


def _avoided(parts: list[Money]) -> dict[str, int]:
    avoided: dict[str, int] = {}
    for part in parts:
        for by, nano in part.avoided.items():
            if nano:
                avoided[by] = avoided.get(by, 0) + nano
    return avoided


def _result(status: CacheStatus) -> str:
    if status.hit:
        return f"{status.layer} hit"
    return f"{status.layer} joined" if status.collapsed else f"{status.layer} {status.forward}"


def _of_cache(status: CacheStatus) -> str:
    if status.hit:
        left = f", good for {status.ttl_s:.0f} s more" if status.ttl_s is not None else ""
        sure = f" (chance of being right: {status.detail})" if status.layer == "semantic" else ""
        return f"a stored answer was given{sure}{left}"
    if status.collapsed:
        return "the same request was being answered; this one shares that answer"
    said = _FORWARDED.get(status.forward, status.forward)
    return f"{said} ({status.detail})" if status.detail else said
