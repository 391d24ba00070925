"""Replies of a busy gateway, for tests of how the page looks: long names and reasons, much of all.

`answer(path)` is what the page gets for a path; None: nothing is known of it.
"""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import parse_qs, urlsplit

STEPS = {
    "15m": (5, 180),
    "1h": (20, 180),
    "24h": (300, 288),
    "7d": (3600, 168),
    "90d": (86_400, 90),
}
"""Span → seconds of a step, and how many."""
NOW = 1_767_225_600
MODELS = ("small", "large")
TENANTS = ("default", "advising-and-admissions", "support", "school-of-engineering")
REASON = (
    "policy quality (≤ 1 points lost with 90 %; 5,475 labels): score 0.4213 is below the cut "
    "0.6120, so small answers; expected cost 4,150 µ$ small, 38,200 µ$ large"
)
PART = (
    "This gateway's part: requests that other gateways answered are not in it. Whoever has the "
    "same Redis shares [cache.exact], [limits] with it and keeps an account of its own; how many "
    "they are is not known here. Only what is used of budgets is everybody's."
)


def answer(path: str, part: str = "") -> Any:
    url = urlsplit(path)
    match url.path.split("/")[1:]:
        case ["dashboard", "data"]:
            return now(part)
        case ["dashboard", "history"]:
            return history(parse_qs(url.query)["span"][0])
        case ["admin", "tenants"]:
            return {"tenants": list(TENANTS), "problem": None, "waiting": []}
        case ["admin", "tenants", name]:
            return tenant(name)
        case ["admin", "caches"]:
            return caches()
        case ["admin", "cascade"]:
            return {"tenants": [policy(name) for name in TENANTS]}
        case ["admin", "cascade", _, "curve"]:
            return curve()
        case ["admin", "decisions"]:
            return {"decisions": [decision(number) for number in range(12)]}
        case ["admin", "decisions", _]:
            return {"decisions": [told(decision(number)) for number in range(2)]}
    return None


def now(part: str = "") -> dict[str, Any]:
    state = {
        "running": 12, "waiting": 3, "preemptions": 1204, "batch_sequences": 12,
        "pages": {"free": 31_040, "running": 8123, "cached": 120_345, "leased": 2},
        "batch_tokens": 524, "tokens_per_s": 1834.0,
    }  # fmt: skip
    engine = {"small": state, "Qwen3-30B-A3B-Instruct": state | {"tokens_per_s": 412.0}}
    return {"part": part, "draining": False, "inflight": 17, "engine": engine}


def history(span: str, first: int = 0) -> dict[str, Any]:
    """Traffic from the step `first` on."""
    step, count = STEPS[span]
    at = [NOW - (count - i) * step for i in range(count)]

    def wave(most: float, shift: float) -> list[float]:
        return [0.0 if i < first else most * (1.2 + math.sin(i / 9 + shift)) for i in range(count)]

    asked = [round(v) for v in wave(20, 0)]
    layers = {
        name: {"asked": asked, "answered": [round(share * n) for n in asked]}
        for name, share in (("exact", 0.3), ("semantic", 0.1), ("join", 0.05))
    }
    origins = ("exact", "joined", "large", "semantic", "small")
    shape = {"p50": 12.5, "p95": 812.0, "p99": 2400.0}
    looks = [NOW - (1800 - i) * 2 for i in range(0, 1800, 4)]
    wide = {"running": 3, "waiting": 1, "batch_sequences": 4, "batch_tokens": 50, "pages_used": 9}
    return {
        "step_s": step, "at": at, "requests": asked,
        "spent_usd": wave(0.01, 1), "wasted_usd": wave(0.001, 2),
        "delivered_tokens": wave(4000, 0), "large_tokens": wave(900, 1),
        "tokens": {name: wave(300, i) for i, name in enumerate(
            ("exact", "semantic", "join", "prefix", "cascade"))},
        "usd": {name: wave(0.004, i) for i, name in enumerate(
            ("exact", "semantic", "join", "prefix", "cascade"))},
        "layers": layers,
        "latency_ms": {
            name: {
                share: [None if v == 0 or (i // 20) % 3 == n % 3 else v * 10 ** (n - 1)
                        for i, v in enumerate(wave(9, n))]
                for share in ("p50", "p95")}
            for n, name in enumerate(origins)},
        "whole_span": {
            name: {"count": 12_345, "request": shape, "ttft": shape} for name in origins},
        "tenants": [
            {"tenant": name, "requests": 123_456, "tokens": 1_234_567, "spent_usd": 12.3,
             "avoided_usd": 45.6} for name in (*TENANTS, "taken-out-last-week", "")],
        "engine": {"at": looks, "models": {
            name: {**{key: [value] * len(looks) for key, value in wide.items()},
                   "tokens_per_s": [900 + 300 * math.sin(i / 20) for i in range(len(looks))]}
            for name in MODELS}},
    }  # fmt: skip


def tenant(name: str) -> dict[str, Any]:
    policy = {
        "rpm": 2000, "tpm": 4_000_000, "max_concurrent": 16, "cascade_policy": "quality",
        "cache_scope": "group:faculty-of-arts", "semantic_max_error": 0.005,
    }  # fmt: skip
    return {
        "name": name,
        "policy": [{"name": key, "value": value} for key, value in policy.items()],
        "budgets": [
            {"period": "day", "limit_usd": 125.0, "used_usd": 97.25},
            {"period": "month", "limit_usd": 2500.0, "used_usd": 2431.5},
        ],
    }


def caches() -> dict[str, Any]:
    promise = {
        "max_error": 0.005, "requests": 120_345, "served": 20_123, "expected_wrong": 301.25,
        "allowed_wrong": 601.73, "proven_at_least": 201, "proven_at_most": 388, "labels": 5475,
        "audited": 1204, "threshold": 0.0123,
        "reason": "nothing is served: of the 5,475 labels too few are of questions as near as this "
        "one; it takes 40 more, and each audited request adds one",
    }  # fmt: skip
    sources = {"judge": 4000, "audit": 1204, "feedback": 271}
    spaces = [
        {"scope": "tenant:advising-and-admissions", "model": "Qwen3-30B-A3B-Instruct",
         "entries": 1_203_450, "promise": promise, "labels_by_source": sources},
        {"scope": "tenant:default", "model": "large", "entries": 340,
         "promise": promise | {"reason": ""}, "labels_by_source": sources},
        {"scope": "tenant:support", "model": "large", "entries": 12, "promise": None,
         "labels_by_source": {}},
    ]  # fmt: skip
    return {"semantic": {"problem": "", "namespaces": 3, "by_namespace": spaces}}


def policy(name: str) -> dict[str, Any]:
    return {
        "tenant": name, "policy": "quality", "calibrated": True, "why": "",
        "promise": {"max_loss": 0.01, "confidence": 0.9, "labels": 5475},
        "with_semantic_cache": {"max_loss": 0.015, "confidence": 0.9},
    }  # fmt: skip


def curve() -> dict[str, Any]:
    shares = [i / 20 for i in range(21)]
    bows = {
        "random": 1.0,
        "prompt length": 0.9,
        "router": 0.7,
        "router + judge": 0.5,
        "oracle": 0.2,
    }
    return {
        "curves": [
            {"name": name, "large_share": shares, "quality": [0.6 + 0.3 * s**bow for s in shares]}
            for name, bow in bows.items()
        ],
        "chosen": {"large_share": 0.4, "quality": 0.89},
        "large": 0.9, "small": 0.6, "target": 0.01,
    }  # fmt: skip


def decision(number: int) -> dict[str, Any]:
    refused = number % 5 == 4
    return {
        "id": f"9f3ac1d204be{number:07x}", "client_id": "my-req-1", "at": NOW - number,
        "tenant": TENANTS[number % 4], "model": ("large", "Qwen3-30B-A3B-Instruct")[number % 2],
        "origin": "none" if refused else "large", "status": 429 if refused else 200,
        "prompt_tokens": 12_345, "completion_tokens": 512, "computed_tokens": 512, "ms": 1234.5,
        "ttft_ms": 45.6, "why": f"cascade: small · {REASON}",
    }  # fmt: skip


def told(line: dict[str, Any]) -> dict[str, Any]:
    steps = [
        ("Exact cache", "exact miss", "nothing fitting was stored"),
        ("Cascade", "small", REASON),
    ]
    return line | {
        "verdict": "Miss: large computed the answer.",
        "story": [
            {"layer": layer, "outcome": outcome, "text": text} for layer, outcome, text in steps
        ],
        "money_nano": {
            "counterfactual": 4_150_000, "spent": 415_000, "waste": 0,
            "avoided": {"cascade": 3_735_000},
        },
    }  # fmt: skip
