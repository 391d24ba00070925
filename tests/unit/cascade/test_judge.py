"""The judge: what an answer gives away, and what breaks the asked format."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from cascade.judge import AFTER, Answered, after, format_fault, holds_whole
from cascade.schema import violation
from engine.contract import Call, Json

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def call_for(response_format: dict[str, Any] | None) -> Call:
    asked = None if response_format is None else Json(json.dumps(response_format))
    return Call("chat", "auto", "t", response_format=asked)


def seen(question: str, answer: Answered) -> dict[str, float]:
    return dict(zip(AFTER, after(question, answer), strict=True))


def test_log_probabilities_become_quantiles() -> None:
    features = seen("?", Answered("yes", (-0.1, -0.2, -0.3, -4.0)))
    assert features["has_logprobs"] == 1.0
    assert features["logprob_min"] == -4.0
    assert features["logprob_mean"] == pytest.approx(-1.15)
    assert features["logprob_first"] == -0.1


def test_without_log_probabilities_the_judge_says_so() -> None:
    features = seen("?", Answered("yes"))
    assert features["has_logprobs"] == features["logprob_mean"] == 0.0


def test_impossible_log_probabilities_do_not_break_the_scale() -> None:
    assert seen("?", Answered("x", (-float("inf"), -0.1)))["logprob_min"] == -20.0


def test_a_wrong_sum_a_hedge_and_a_new_number_are_seen() -> None:
    features = seen("Add 2 and 3.", Answered("However, 2 + 3 = 6."))
    assert features["any_sum_wrong"] == 1.0
    assert features["hedges"] > 0.0
    assert features["new_numbers"] > 0.0
    assert features["unused_numbers"] == 0.0


def test_an_answer_that_goes_on_is_not_finished() -> None:
    assert seen("?", Answered("and"))["finished"] == 0.0
    assert seen("?", Answered("and", finish="length"))["cut_by_length"] == 1.0


def test_features_are_finite_for_anything() -> None:
    for text in ("", "9" * 400, "-", "\n\n", "é" * 50, "1.5", "..5,"):
        assert np.isfinite(after(text, Answered(text, (), "stop"))).all()


@pytest.mark.parametrize(
    "text", ["I'm sorry, but I can't help with that.", "I cannot answer this.", "As an AI model, I"]
)
def test_a_refusal_breaks_the_answer(text: str) -> None:
    assert format_fault(call_for(None), Answered(text)) == "the answer refuses"


@pytest.mark.parametrize("text", ["Sorrel is a herb.", "I can do that: 4.", "The answer is no."])
def test_a_plain_answer_is_no_refusal(text: str) -> None:
    assert format_fault(call_for(None), Answered(text, finish="stop")) == ""


JSON_OBJECT = {"type": "json_object"}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("asked", "text", "finish", "fault"),
    [
        (None, "not json", "stop", ""),
        ({"type": "text"}, "not json", "stop", ""),
        (JSON_OBJECT, "{}", "stop", ""),
        (JSON_OBJECT, "[1]", "stop", "not a JSON object"),
        (JSON_OBJECT, "{", "stop", "not JSON"),
        (JSON_OBJECT, "{", "length", "cut by the token limit"),
        (JSON_OBJECT, "{", None, ""),
        (JSON_SCHEMA, '{"name": "a", "age": 3}', "stop", ""),
        (JSON_SCHEMA, '{"name": "a"}', "stop", "$.age is missing"),
    ],
)
def test_a_broken_document_is_named(asked: Any, text: str, finish: Any, fault: str) -> None:
    found = format_fault(call_for(asked), Answered(text, (), finish))
    assert fault in found
    assert bool(found) == bool(fault)


def test_tool_arguments_must_be_json() -> None:
    broken = Answered("", (), "tool_calls", ('{"a": ',))
    assert "not JSON" in format_fault(call_for(None), broken)
    whole = Answered("", (), "tool_calls", ('{"a": 1}',))
    assert format_fault(call_for(None), whole) == ""


def test_only_documents_are_held_whole() -> None:
    assert holds_whole(call_for(JSON_OBJECT))
    assert not holds_whole(call_for({"type": "text"}))
    assert not holds_whole(call_for(None))


@pytest.mark.parametrize(
    ("document", "schema", "fault"),
    [
        ({"name": "a", "age": 3, "x": 1}, SCHEMA, "$.x is not in the schema"),
        ({"name": "a", "age": True}, SCHEMA, "$.age is not of type integer"),
        ({"name": "a", "age": 3.0}, SCHEMA, ""),
        ([1, "b"], {"type": "array", "items": {"type": "number"}}, "$[1] is not of type number"),
        ("c", {"enum": ["a", "b"]}, "$ is not one of the schema's values"),
        (2, {"const": 1}, "$ is not the constant"),
        (None, {"type": ["string", "null"]}, ""),
        (1, {"anyOf": [{"type": "string"}, {"type": "null"}]}, "$ fits no option"),
        (1, {"$ref": "#/$defs/n", "$defs": {"n": {"type": "string"}}}, "$ is not of type string"),
        (1, {"$ref": "https://elsewhere/x"}, ""),
        (1, {"type": "unheard-of"}, ""),
        (1, True, ""),
    ],
)
def test_a_document_keeps_its_schema(document: Any, schema: Any, fault: str) -> None:
    found = violation(document, schema)
    assert found.startswith(fault) if fault else found == ""


def test_a_schema_that_refers_to_itself_ends() -> None:
    assert violation(1, {"$ref": "#"}) == ""


@pytest.mark.parametrize(
    "hedge",
    "however,Assuming,unclear,not possible,not sure,impossible,I think,probably,perhaps,might,"
    "maybe,approximately,can't,cannot,doesn't say,doesn't specify,not given,NOT SPECIFIED".split(
        ","
    ),
)
def test_each_hedge_is_found_wherever_it_stands(hedge: str) -> None:
    for text in (hedge, f"It is 4, {hedge}", f"{hedge} it is 4.", f"½ {hedge} 4"):
        assert seen("2+2?", Answered(text))["hedges"] == pytest.approx(math.log1p(1))


@pytest.mark.parametrize("text", ["A notable doe is possible.", "Nothing, can you? Mightily."])
def test_words_that_look_like_hedges_are_none(text: str) -> None:
    assert seen("2+2?", Answered(text))["hedges"] == 0.0
