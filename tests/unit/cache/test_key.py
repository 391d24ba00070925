"""When two calls are the same."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import fields, is_dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.key import FAMILY_BYTES, KEY_BYTES, KEYED, cacheable, family_of, key_of
from engine.contract import BadCall, Call, Json, Message, Part, Sampling, ToolCall
from tests.support.recordings import call_of

texts = st.text(max_size=6)
maybe_texts = st.none() | texts
# -0.0 equals 0.0 and is written differently: a missed hit for a value that nobody sends.
reals = st.floats(-2, 2).map(lambda value: value + 0.0)
maybe_reals = st.none() | reals
counts = st.integers(-3, 2**63 - 1)
parts = st.builds(Part, st.sampled_from(["text", "image"]), texts)
messages = st.builds(
    Message,
    st.sampled_from(["user", "assistant"]),
    st.lists(parts, max_size=2).map(tuple),
    maybe_texts,
    st.lists(st.builds(ToolCall, texts, texts, texts), max_size=2).map(tuple),
    maybe_texts,
)
samplings = st.builds(
    Sampling,
    maybe_reals,
    maybe_reals,
    st.none() | counts,
    maybe_reals,
    reals,
    reals,
    reals,
    st.lists(st.tuples(counts, reals), max_size=2).map(tuple),
    st.none() | counts,
)
calls = st.builds(
    Call,
    kind=st.sampled_from(["chat", "text"]),
    model=texts,
    scope=texts,
    fingerprint=texts,
    policy=texts,
    messages=st.lists(messages, max_size=2).map(tuple),
    prompt=texts | st.lists(counts, max_size=3).map(tuple),
    sampling=samplings,
    n=st.integers(1, 4),
    max_tokens=st.none() | counts,
    longest=st.none() | counts,
    stop=st.lists(texts, max_size=2).map(tuple),
    logprobs=st.booleans(),
    top_logprobs=st.integers(0, 20),
    tools=maybe_texts,
    tool_choice=maybe_texts,
    parallel_tool_calls=st.booleans(),
    response_format=maybe_texts,
    chat_template_kwargs=maybe_texts,
    extra=maybe_texts,
)


@given(calls, calls)
def test_two_calls_have_one_key_exactly_when_they_are_equal(one: Call, other: Call) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)


@given(calls)
def test_a_call_built_again_has_the_same_key(call: Call) -> None:
    again = replace(call, sampling=replace(call.sampling), messages=(*call.messages,))
    assert key_of(again) == key_of(call)
    assert len(key_of(call)) == KEY_BYTES


@given(calls, st.data())
def test_one_changed_field_changes_the_key(call: Call, data: st.DataObject) -> None:
    donor = data.draw(calls)
    name = data.draw(st.sampled_from([field.name for field in fields(Call)]))
    changed = replace(call, **{name: getattr(donor, name)})
    assert (key_of(changed) == key_of(call)) == (getattr(donor, name) == getattr(call, name))


def types_within(root: type) -> set[type]:
    """Every dataclass that a value of `root` can hold."""
    found: set[type] = set()
    todo: list[object] = [root]
    while todo:
        kind = todo.pop()
        todo.extend(typing.get_args(kind))
        if is_dataclass(kind) and kind not in found:
            found.add(typing.cast(type, kind))
            hints = typing.get_type_hints(kind)
            todo.extend(hints[field.name] for field in fields(typing.cast(type, kind)))
    return found


def test_every_type_that_a_call_is_made_of_has_its_fields_decided() -> None:
    assert types_within(Call) == set(KEYED)


@pytest.mark.parametrize("kind", KEYED, ids=lambda kind: kind.__name__)
def test_every_field_has_a_decided_role_in_the_key(kind: type) -> None:
    """Fails when a field is added: look at cache/key.py, decide, and add it to KEYED."""
    assert {field.name for field in fields(kind)} == set(KEYED[kind])
    assert len(KEYED[kind]) == len(set(KEYED[kind]))


BASE = Call(
    kind="chat",
    model="small",
    scope="a",
    messages=(Message("user", (Part("text", "hi"),), tool_calls=(ToolCall("1", "f", "{}"),)),),
)
OTHER_VALUES: dict[type, dict[str, object]] = {
    Call: {
        "kind": "text",
        "model": "large",
        "scope": "b",
        "fingerprint": "w2",
        "policy": "strict",
        "messages": (),
        "prompt": (1,),
        "sampling": Sampling(seed=1),
        "n": 2,
        "max_tokens": 1,
        "longest": 1,
        "stop": ("x",),
        "logprobs": True,
        "top_logprobs": 1,
        "tools": Json("[]"),
        "tool_choice": Json('"auto"'),
        "parallel_tool_calls": False,
        "response_format": Json("{}"),
        "chat_template_kwargs": Json("{}"),
        "extra": Json("{}"),
    },
    Sampling: {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 1,
        "min_p": 0.0,
        "frequency_penalty": 1.0,
        "presence_penalty": 1.0,
        "repetition_penalty": 2.0,
        "logit_bias": ((1, 1.0),),
        "seed": 0,
    },
    Message: {
        "role": "system",
        "parts": (),
        "name": "",
        "tool_calls": (),
        "tool_call_id": "",
    },
    Part: {"kind": "image", "body": "ho"},
    ToolCall: {"id": "2", "name": "g", "arguments": "[]"},
}


def changed_at(kind: type, name: str, value: object) -> Call:
    [message] = BASE.messages
    if kind is Call:
        return replace(BASE, **{name: value})  # type: ignore[arg-type]
    if kind is Sampling:
        return replace(BASE, sampling=replace(BASE.sampling, **{name: value}))  # type: ignore[arg-type]
    if kind is Message:
        return replace(BASE, messages=(replace(message, **{name: value}),))  # type: ignore[arg-type]
    holder = "parts" if kind is Part else "tool_calls"
    [inner] = getattr(message, holder)
    changed = (dataclasses.replace(inner, **{name: value}),)
    return replace(BASE, messages=(replace(message, **{holder: changed}),))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, names in KEYED.items() for name in names],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_each_keyed_field_is_in_the_key(kind: type, name: str) -> None:
    assert key_of(changed_at(kind, name, OTHER_VALUES[kind][name])) != key_of(BASE)


CONFUSIONS = {
    "a number and its text": [call_of(prompt="1"), call_of(prompt=(1,))],
    "one stop string and two": [call_of(stop=("ab",)), call_of(stop=("a", "b"))],
    "where a part ends": [
        call_of(messages=(Message("user", (Part("text", "ab"), Part("text", "c"))),)),
        call_of(messages=(Message("user", (Part("text", "a"), Part("text", "bc"))),)),
    ],
    "where a message ends": [
        call_of(messages=(Message("user", (Part("text", "a"), Part("text", "b"))),)),
        call_of(
            messages=(
                Message("user", (Part("text", "a"),)),
                Message("user", (Part("text", "b"),)),
            )
        ),
    ],
    "no name and an empty one": [
        call_of(messages=(Message("user", name=None),)),
        call_of(messages=(Message("user", name=""),)),
    ],
    "nothing, null and an empty object": [
        call_of(tools=None),
        call_of(tools=Json("null")),
        call_of(tools=Json("{}")),
        call_of(tools=Json("")),
    ],
    "the same value in the next field": [
        call_of(tools=Json("[]")),
        call_of(tool_choice=Json("[]")),
        call_of(response_format=Json("[]")),
        call_of(extra=Json("[]")),
    ],
    "true, one, one point nought and their texts": [
        call_of(max_tokens=True),
        call_of(max_tokens=1),
        call_of(max_tokens=1.0),
        call_of(max_tokens="1"),
        call_of(max_tokens=None),
    ],
    "unsaid and the usual default": [
        call_of(sampling=Sampling()),
        call_of(sampling=Sampling(temperature=1.0)),
        call_of(sampling=Sampling(top_p=1.0)),
        call_of(sampling=Sampling(seed=0)),
    ],
    "scope and model run together": [
        call_of(scope="ab", model="c"),
        call_of(scope="a", model="bc"),
    ],
    "composed and decomposed letters": [call_of("\u00e9"), call_of("e\u0301")],
}


@pytest.mark.parametrize("name", CONFUSIONS)
def test_what_only_looks_alike_has_different_keys(name: str) -> None:
    group = CONFUSIONS[name]
    assert len({key_of(call) for call in group}) == len(group)


@pytest.mark.parametrize(
    "call", [call_of(sampling=Sampling(seed=2**70)), call_of("half a pair: \ud800")]
)
def test_what_cannot_be_written_down_is_the_callers_mistake(call: Call) -> None:
    with pytest.raises(BadCall, match="64 bits"):
        key_of(call)


@pytest.mark.parametrize(
    ("sampling", "n", "expected"),
    [
        (Sampling(), 1, True),
        (Sampling(temperature=0.0), 1, True),
        (Sampling(temperature=0.0, top_p=0.5), 1, True),
        (Sampling(top_p=1.0), 1, True),
        (Sampling(temperature=1.0, seed=0), 1, True),
        (Sampling(top_p=0.5, seed=3), 1, True),
        (Sampling(temperature=0.01), 1, False),
        (Sampling(top_p=0.99), 1, False),
        (Sampling(), 2, False),
        (Sampling(temperature=0.0), 2, False),
        (Sampling(seed=1), 2, False),
    ],
)
def test_only_who_asks_for_randomness_is_refused(
    sampling: Sampling, n: int, expected: bool
) -> None:
    assert cacheable(call_of(sampling=sampling, n=n)) is expected
    assert cacheable(call_of(sampling=sampling, n=n), allow_sampling=True)


def test_a_key_ends_with_its_scopes_family() -> None:
    one, other = call_of("a", scope="tenant:a"), call_of("b", scope="tenant:a")
    stranger = call_of("a", scope="tenant:b")
    assert key_of(one)[-FAMILY_BYTES:] == key_of(other)[-FAMILY_BYTES:] == family_of("tenant:a")
    assert key_of(stranger)[-FAMILY_BYTES:] != family_of("tenant:a")


def test_calls_of_two_scopes_differ_outside_of_the_family_too() -> None:
    mine, yours = call_of(scope="tenant:a"), call_of(scope="tenant:b")
    assert key_of(mine)[:-FAMILY_BYTES] != key_of(yours)[:-FAMILY_BYTES]
