"""Server-sent events survive any cut of the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.sse import MAX_EVENT_BYTES, EventReader, EventTooLarge

STREAM = (
    b": hello\r\n\r\ndata: one\n\nevent: x\ndata: two\r\n\r\ndata:three\ndata: four\n\n\n\n"
    b"id: 5\n\ndata: [DONE]\n\n"
)
EVENTS = [b"one", b"two", b"three\nfour", b"[DONE]"]


@given(st.lists(st.integers(1, len(STREAM) - 1), unique=True, max_size=20))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    reader, events, last = EventReader(), [], 0
    for cut in [*sorted(cuts), len(STREAM)]:
        events += reader.feed(STREAM[last:cut])
        last = cut
    assert events == EVENTS


def test_an_event_without_its_empty_line_is_given_at_the_end() -> None:
    reader = EventReader()
    assert reader.feed(b"data: last") == []
    assert reader.close() == [b"last"]
    assert reader.close() == []


def test_an_endless_event_is_refused() -> None:
    reader = EventReader()
    for _ in range(MAX_EVENT_BYTES >> 20):
        reader.feed(b"x" * (1 << 20))
    with pytest.raises(EventTooLarge):
        reader.feed(b"x")
