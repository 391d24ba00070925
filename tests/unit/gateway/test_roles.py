"""No field of a request is without a decided role in the cache key, and each role is true."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cache.key import key_of
from gateway.catalog import Place
from gateway.wire import chat, completions
from gateway.wire.sampling import KEY

SURFACES = [
    (chat.ChatRequest, chat.ROLES),
    (completions.CompletionRequest, completions.ROLES),
]
TOOL = {"type": "function", "function": {"name": "f"}}
OTHER: dict[str, Any] = {
    "model": "n",
    "messages": [{"role": "user", "content": "y"}],
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.1,
    "frequency_penalty": 1,
    "presence_penalty": 1,
    "repetition_penalty": 1.1,
    "logit_bias": {"1": 1},
    "seed": 3,
    "n": 2,
    "max_tokens": 9,
    "max_completion_tokens": 9,
    "stop": "x",
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [TOOL],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "chat_template_kwargs": {"enable_thinking": False},
    "stream": True,
    "stream_options": {"include_usage": True},
    "user": "u",
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "store": False,
    "service_tier": "default",
    "safety_identifier": "u",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
}
"""A value for each field that differs from leaving it out."""
NEEDS: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
}


@pytest.mark.parametrize(("shape", "roles"), SURFACES)
def test_every_field_has_a_role_and_every_role_a_field(shape: Any, roles: Any) -> None:
    assert set(shape.__struct_encode_fields__) == set(roles)


def key(fields: dict[str, Any]) -> bytes:
    base: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    request, extra = chat.new_decoder().decode(json.dumps({**base, **fields}).encode())
    place = Place(request.model, "tenant:t", "f", chat.max_tokens_of(request))
    return key_of(chat.call_of(request, extra, place))


@pytest.mark.parametrize("field", sorted(chat.ROLES))
def test_a_field_changes_the_key_exactly_when_its_role_says_so(field: str) -> None:
    needed = NEEDS.get(field, {})
    changed = key({**needed, field: OTHER[field]}) != key(needed)
    assert changed == (chat.ROLES[field] == KEY)


@pytest.mark.parametrize("off", [{"top_k": 0}, {"repetition_penalty": 1.0}])
def test_off_is_a_thing_to_say(off: dict[str, Any]) -> None:
    assert key(off) != key({})
    assert key({"top_k": -1}) == key({"top_k": 0})


def test_what_nobody_knows_is_in_the_key() -> None:
    assert key({"reasoning_effort": "low"}) != key({})
    assert key({"reasoning_effort": "low"}) != key({"reasoning_effort": "high"})
