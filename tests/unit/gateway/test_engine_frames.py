"""Messages between gateway and engine process: what goes in comes out, however the line cuts it."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract import (
    BadCall,
    Call,
    DeadlineExceeded,
    Delta,
    End,
    Failed,
    Finish,
    Message,
    NotCached,
    Overloaded,
    TokenLogprob,
    Usage,
)
from engine.mailbox import Item
from gateway.engine_process import frames
from gateway.engine_process.frames import (
    MOST,
    Ask,
    BadFrame,
    Begin,
    Cancel,
    Letters,
    Splitter,
    frame,
    items_of,
    letter,
    read_from_engine,
    read_from_gateway,
    right,
    wrong,
)
from gateway.engine_process.sender import LINE_BYTES, Sender
from gateway.settings import Engine, Model, Settings

PATIENCE_S = 60.0
CUT = Usage(9, 2, 3, 8)

text = st.text(st.characters(codec="utf-8"))
logprob = st.builds(
    TokenLogprob, text, st.binary(max_size=8), st.floats(allow_nan=False),
    st.lists(st.builds(TokenLogprob, text, st.binary(max_size=4), st.floats(-9.0, 0.0)),
             max_size=2).map(tuple),
)  # fmt: skip
delta = st.builds(
    Delta,
    st.integers(0, 127),
    st.sampled_from(["text", "tool", "reasoning"]),
    text,
    st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    st.lists(logprob, max_size=2).map(tuple),
)
finish = st.builds(Finish, st.integers(0, 127), st.sampled_from(["stop", "length"]))
end = st.builds(End, st.builds(Usage, *[st.integers(0, 2**40)] * 4))


def sent(message: frames.Message) -> bytes:
    """As it comes out of the line, whole."""
    (body,) = Splitter().feed(frame(message))
    return body


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 2500), max_size=12))
def test_frames_are_whole_wherever_the_line_cuts_them(bodies: list[bytes], cuts: list[int]) -> None:
    line = b"".join(frame(frames.Progress(body.hex())) for body in bodies)
    places = [0, *sorted(min(cut, len(line)) for cut in cuts), len(line)]
    splitter = Splitter()
    got = [
        read_from_engine(body)
        for begin, end in itertools.pairwise(places)
        for body in splitter.feed(line[begin:end])
    ]
    assert got == [frames.Progress(body.hex()) for body in bodies]


def test_a_line_out_of_step_is_noticed() -> None:
    with pytest.raises(BadFrame):
        Splitter().feed((MOST + 1).to_bytes(4, "little") + b"x")
    with pytest.raises(msgspec.DecodeError):
        read_from_engine(b"\x93\x01\x02\x03")


@given(
    st.builds(
        Call,
        kind=st.just("text"),
        model=text,
        scope=text,
        prompt=text | st.lists(st.integers(0, 2**31 - 1), max_size=9).map(tuple),
        stop=st.lists(text, max_size=3).map(tuple),
        n=st.integers(1, 128),
    )
)
def test_a_call_arrives_as_it_was(call: Call) -> None:
    asked = Ask(2**62, "small", call, "r1", "tenant", 0.5, 12.25, None)
    assert read_from_gateway(sent(asked)) == asked


def test_every_field_of_a_call_travels() -> None:
    """One of each kind, so that a new field of a kind that cannot be sent is noticed."""
    call = msgspec.convert(
        {
            "kind": "chat", "model": "m", "scope": "s", "fingerprint": "f", "policy": "p",
            "messages": [{"role": "user", "parts": [{"kind": "text", "body": "é"}], "name": "n",
                          "tool_calls": [{"id": "1", "name": "f", "arguments": "{}"}],
                          "tool_call_id": "2"}],
            "sampling": {"temperature": 0.5, "logit_bias": [[3, -100.0]], "seed": -(2**63)},
            "max_tokens": 9, "longest": 8, "logprobs": True, "top_logprobs": 2, "tools": "[]",
            "tool_choice": '"auto"', "parallel_tool_calls": False, "response_format": "{}",
            "chat_template_kwargs": "{}", "extra": "{}",
        },
        Call,
    )  # fmt: skip
    assert isinstance(call.messages[0], Message)
    plain = Call("chat", "", "")
    left = {
        name for name in Call.__dataclass_fields__ if getattr(call, name) == getattr(plain, name)
    }
    assert left == {"kind", "prompt", "n", "stop"}, "the other test draws those"
    asked = Ask(1, "m", call, "r", "t", 1.0, 0.0, 5.0)
    assert read_from_gateway(sent(asked)) == asked


@given(
    st.lists(delta, max_size=4), st.lists(finish, max_size=3), st.none() | end,
    st.none() | st.floats(0.0, 1e9),
)  # fmt: skip
def test_a_letter_holds_what_was_put_in(
    deltas: list[Delta], finishes: list[Finish], last: End | None, first_token: float | None
) -> None:
    items: list[Item] = [*deltas, *finishes, *([last] if last else [])]
    if not items:
        return
    written = Letters([letter(7, items, lambda: CUT, (None, first_token))])
    got = read_from_engine(sent(written))
    assert isinstance(got, Letters)
    assert got == written
    assert items_of(got.letters[0]) == items
    assert got.letters[0].first_token == first_token


@pytest.mark.parametrize("kind", [BadCall, DeadlineExceeded, Failed, Overloaded])
def test_an_error_arrives_as_it_was(kind: type[BadCall]) -> None:
    error = kind("what and why", param="p", code="c", retry_after_s=1.5)
    got = read_from_engine(sent(Letters([letter(1, [error], lambda: CUT)])))
    assert isinstance(got, Letters)
    (again,) = items_of(got.letters[0])
    assert got.letters[0].usage == CUT
    assert type(again) is kind
    assert vars(again) == vars(error)


def test_an_error_that_no_engine_raises_is_a_failure_of_ours() -> None:
    assert type(right(wrong(NotCached("no")))) is Failed


def test_settings_arrive_with_their_paths() -> None:
    settings = Settings(
        models=MappingProxyType({"small": Model(path=Path("/a/b"), max_context=9)}),
        engine=Engine(threads=2),
    )
    got = read_from_gateway(sent(Begin(settings)))
    assert got == Begin(replace(settings, models=dict(settings.models)))
    assert read_from_gateway(sent(Cancel(3))) == Cancel(3)


def test_a_full_line_makes_nobody_wait_and_loses_nothing() -> None:
    here, there = socket.socketpair()
    sender = Sender(here)
    count = 4 * LINE_BYTES // 8
    began = time.monotonic()
    for at in range(count):
        sender.send(Cancel(at))
    assert time.monotonic() - began < PATIENCE_S
    got: list[int] = []

    def read() -> None:
        splitter = Splitter()
        while len(got) < count:
            for body in splitter.feed(there.recv(1 << 16)):
                message = read_from_gateway(body)
                assert isinstance(message, Cancel)
                got.append(message.number)

    reader = threading.Thread(target=read)
    reader.start()
    sender.drain(PATIENCE_S)
    reader.join(PATIENCE_S)
    assert got == list(range(count))
    there.close()
    sender.send(Cancel(1))  # to nobody: no harm
    here.close()
