"""Only a complete, well-formed answer is worth giving again."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pytest

from cache.record import Recorder
from cache.replay import Recording
from engine.contract import Burst, Call, Delta, End, Event, Finish, Json, Start, Usage
from tests.support.recordings import answer_of, call_of

START = Start("id", 1, "demo", "small")
END = End(Usage(1, 2, 0, 3))


def judged(events: Sequence[Event], call: Call | None = None) -> Recording | None:
    recorder = Recorder(call or call_of())
    for event in events:
        recorder.see(event)
    return recorder.recording(stored_at=5.0, ttl_s=60.0, tags=("t",))


def tool(index: int = 0, **function: object) -> Delta:
    payload = orjson.dumps({"index": index, "type": "function", "function": function}).decode()
    return Delta(0, "tool", payload)


def test_a_complete_answer_is_recorded_as_it_was() -> None:
    events = answer_of("Par", "is")
    recording = judged(events, call_of(policy="strict"))
    assert recording is not None
    assert recording.events() == tuple(e for e in events if isinstance(e, Delta | Finish))
    assert (recording.model, recording.origin, recording.created) == (
        "demo",
        "small",
        1_700_000_000,
    )
    assert (recording.scope, recording.policy) == ("tenant:default", "strict")
    assert (recording.stored_at, recording.ttl_s, recording.tags) == (5.0, 60.0, ("t",))
    assert recording.usage == Usage(5, 2, 2, 5)


@pytest.mark.parametrize("missing", range(4))
def test_a_cut_answer_is_not_recorded(missing: int) -> None:
    whole = [START, Delta(0, "text", "a"), Finish(0, "stop"), END]
    without = [event for i, event in enumerate(whole) if i != missing]
    assert (judged(without) is None) == (missing != 1)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_empty_answer_that_finished_is_recorded(reason: str) -> None:
    assert judged([START, Finish(0, reason), END]) is not None  # type: ignore[arg-type]


def test_a_filtered_answer_is_not_recorded() -> None:
    assert judged([START, Finish(0, "content_filter"), END]) is None


def test_every_choice_must_have_finished() -> None:
    both = [START, Finish(0, "stop"), Finish(1, "length"), END]
    assert judged(both, call_of(n=2)) is not None
    assert judged(both, call_of(n=3)) is None
    assert judged(both, call_of(n=1)) is None


@pytest.mark.parametrize(
    "events",
    [
        [START, Finish(0, "stop"), Delta(0, "text", "late"), END],
        [START, Finish(0, "stop"), Finish(0, "stop"), END],
        [START, Finish(0, "stop"), END, END],
        [START, START, Finish(0, "stop"), END],
    ],
)
def test_an_answer_out_of_order_is_not_recorded(events: list[Event]) -> None:
    assert judged(events) is None


@pytest.mark.parametrize("origin", ["exact", "semantic", "joined"])
def test_what_a_cache_answered_is_not_recorded(origin: str) -> None:
    assert judged(answer_of("a", origin=origin)) is None


def test_a_burst_is_not_recorded() -> None:
    assert judged([START, Burst(lambda: (), {}, lambda: ()), Finish(0, "stop"), END]) is None


def test_tool_calls_in_pieces_are_recorded_when_whole() -> None:
    pieces = [
        tool(name="weather", arguments=""),
        tool(arguments='{"city":'),
        tool(1, name="time", arguments="{}"),
        tool(arguments='"Paris"}'),
    ]
    assert judged([START, *pieces, Finish(0, "tool_calls"), END]) is not None


@pytest.mark.parametrize(
    "pieces",
    [
        [tool(name="weather", arguments='{"city":')],
        [tool(name="weather", arguments="")],
        [tool(arguments="{}")],
        [Delta(0, "tool", "not json")],
        [Delta(0, "tool", "[]")],
        [],
    ],
)
def test_broken_tool_calls_are_not_recorded(pieces: list[Delta]) -> None:
    assert judged([START, *pieces, Finish(0, "tool_calls"), END]) is None


def test_a_tool_delta_with_null_fields_is_read() -> None:
    pieces = [tool(name="f", arguments=None), tool(name=None, arguments="{}")]
    assert judged([START, *pieces, Finish(0, "tool_calls"), END]) is not None


@pytest.mark.parametrize(
    ("text", "asked", "reason", "kept"),
    [
        ('{"a":1}', '{"type":"json_object"}', "stop", True),
        ('{"a":', '{"type":"json_object"}', "stop", False),
        ("plain", '{"type":"json_schema"}', "stop", False),
        ('{"a":', '{"type":"json_object"}', "length", True),
        ("plain", '{"type":"text"}', "stop", True),
    ],
)
def test_json_that_was_asked_for_must_be_json(
    text: str, asked: str, reason: str, kept: bool
) -> None:
    halves = [Delta(0, "text", text[:3]), Delta(0, "text", text[3:])]
    call = call_of(response_format=Json(asked))
    events = [START, *halves, Finish(0, reason), END]  # type: ignore[arg-type]
    assert (judged(events, call) is not None) is kept
