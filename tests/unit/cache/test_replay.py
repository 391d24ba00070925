"""A recording is the answer, in bytes."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cache.replay import Recording, decode, encode, pack_body, replay, unpack_body, unpack_whole
from engine.contract import Burst, Delta, End, Finish, Start, TokenLogprob, Usage
from tests.support.recordings import events_of, recording_of

tops = st.builds(TokenLogprob, st.text(max_size=3), st.binary(max_size=3), st.floats(-99, 0))
chosen = st.builds(
    TokenLogprob,
    st.text(max_size=3),
    st.binary(max_size=3),
    st.floats(-99, 0),
    st.lists(tops, max_size=2).map(tuple),
)
deltas = st.builds(
    Delta,
    st.integers(0, 3),
    st.sampled_from(["text", "tool", "reasoning"]),
    st.text(max_size=5),
    st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
    st.lists(chosen, max_size=2).map(tuple),
)
finishes = st.builds(
    Finish,
    st.integers(0, 3),
    st.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
)


@given(st.lists(deltas | finishes, max_size=6))
def test_a_body_unpacks_to_the_events_that_were_packed(events: list[Delta | Finish]) -> None:
    assert unpack_body(pack_body(events)) == tuple(events)


@given(st.lists(deltas | finishes, max_size=8))
def test_who_wants_the_answer_whole_reads_the_same_in_fewer_events(
    events: list[Delta | Finish],
) -> None:
    def said(heard: tuple[Delta | Finish, ...]) -> list[object]:
        """Texts per choice and kind in order; all else as it is."""
        texts: dict[tuple[int, str], str] = {}
        others: list[object] = []
        for event in heard:
            if isinstance(event, Delta) and event.kind != "tool":
                place = (event.index, event.kind)
                texts[place] = texts.get(place, "") + event.payload
                others += event.logprobs
            else:
                others.append(event)
        return [texts, others]

    assert said(unpack_whole(pack_body(events))) == said(tuple(events))


def test_pieces_of_one_text_are_read_as_one() -> None:
    pieces = [Delta(0, "text", piece, (7,)) for piece in "abc"]
    heard = unpack_whole(pack_body([*pieces, Delta(1, "text", "d"), Finish(0, "stop")]))
    assert heard == (Delta(0, "text", "abc"), Delta(1, "text", "d"), Finish(0, "stop"))


@given(st.lists(deltas | finishes, max_size=4), st.text(max_size=4), st.floats(0, 1e10))
def test_a_recording_survives_its_bytes(
    events: list[Delta | Finish], word: str, time_s: float
) -> None:
    recording = Recording(
        model=word,
        created=3,
        origin="small",
        usage=Usage(1, 2, 3, 4),
        body=pack_body(events),
        stored_at=time_s,
        ttl_s=5.0,
        scope=word,
        policy=word,
        tags=(word, "t"),
    )
    assert decode(encode(recording)) == recording


@given(st.binary(max_size=200))
def test_rubbish_decodes_to_a_miss(rubbish: bytes) -> None:
    assert decode(rubbish) is None


@given(st.data())
def test_a_torn_or_altered_entry_decodes_to_a_miss(data: st.DataObject) -> None:
    good = encode(recording_of("Par", "is"))
    cut = data.draw(st.integers(0, len(good) - 1))
    flipped = data.draw(st.integers(0, 7))
    assert decode(good[:cut]) is None
    altered = bytearray(good)
    altered[cut] ^= 1 << flipped
    assert decode(bytes(altered)) in (None, decode(good))


def test_another_format_is_a_miss() -> None:
    _, crc, inner = msgspec.msgpack.decode(encode(recording_of("a")))
    assert decode(msgspec.msgpack.encode((99, crc, inner))) is None


def test_a_body_of_another_shape_is_a_miss() -> None:
    strange = replace(recording_of("a"), body=msgspec.msgpack.encode({"not": "rows"}))
    assert decode(encode(strange)) is None


def test_a_replay_says_the_same_under_a_new_id_and_computes_nothing() -> None:
    recording = recording_of("Par", "is")
    start, burst, end = replay(recording, "new")
    assert start == Start("new", recording.created, "demo", "exact")
    assert isinstance(burst, Burst)
    assert burst.read() == tuple(events_of("Par", "is"))
    assert end == End(Usage(5, 2, 2, computed_tokens=0))


def test_a_fragment_kept_by_one_replay_is_there_in_the_next() -> None:
    recording = recording_of("Par", "is")
    _, first, _ = replay(recording, "1")
    _, second, _ = replay(recording, "2")
    assert isinstance(first, Burst)
    assert isinstance(second, Burst)
    before = recording.held_bytes
    first.memo["sse"] = b"x" * 100
    first.memo["sse"] = b"x" * 70
    assert second.memo["sse"] == b"x" * 70
    assert recording.held_bytes == before + 70


def test_tags_are_part_of_what_a_recording_holds() -> None:
    plain, tagged = recording_of("Paris"), recording_of("Paris", tags=("x" * 100, "y" * 100))
    assert tagged.held_bytes - plain.held_bytes > 200


def test_fragments_are_no_part_of_what_is_written() -> None:
    recording = recording_of("Par", "is")
    plain = encode(recording)
    recording.memo["sse"] = b"x"
    assert encode(recording) == plain
