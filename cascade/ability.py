"""What a model can do, and what a call asks for: candidates are filtered by this before any score.

A model that cannot do what is asked is no cheap answer but a wrong one. Context is checked against
an estimate (characters over four), because tokenising happens inside each model; where the estimate
is too kind the model itself refuses, and the cascade goes on to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascade.price import estimate_prompt_tokens
from engine.contract import Call

LONG = "so long a context"


@dataclass(frozen=True, slots=True)
class Abilities:
    """`context_tokens` bounds prompt and answer together; None: unknown, not checked."""

    context_tokens: int | None = None
    tools: bool = True
    json: bool = True
    """Whether it takes a response_format."""
    vision: bool = False
    logprobs: bool = True
    """Whether it reports them when asked: what the judge lives on."""
    extra: bool = False
    """Whether it takes parameters that we do not know (Call.extra)."""


def lacking(call: Call, abilities: Abilities) -> str:
    """The first thing that the call needs and the model has not; empty: nothing."""
    wanted = {
        "tools": call.tools is not None and not abilities.tools,
        "a response_format": call.response_format is not None and not abilities.json,
        "images": _has_images(call) and not abilities.vision,
        "log-probabilities": call.logprobs and not abilities.logprobs,
        "parameters that we do not know": call.extra is not None and not abilities.extra,
        LONG: _too_long(call, abilities.context_tokens),
    }
    return next((what for what, missing in wanted.items() if missing), "")


def _too_long(call: Call, context_tokens: int | None) -> bool:
    if context_tokens is None:
        return False
    return estimate_prompt_tokens(call) + (call.max_tokens or 1) > context_tokens


def _has_images(call: Call) -> bool:
    kinds = {part.kind for message in call.messages for part in message.parts}
    return bool(kinds - {"text", "refusal", "reasoning"})
