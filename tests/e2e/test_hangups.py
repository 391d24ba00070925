"""Callers who leave in the middle. Afterwards nothing runs and no page is held (see `server`)."""

from __future__ import annotations

import json
import random
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.program import post_bytes, read_replies, read_reply, wait_until
from tests.support.served import MAX_RUNNING, chat

BOTH_WAYS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def send(connection: socket.socket, body: dict[str, object]) -> None:
    connection.sendall(post_bytes(json.dumps(body).encode()))


def reset(connection: socket.socket) -> None:
    """Close so that the other side reads "connection reset" and not an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@BOTH_WAYS
@pytest.mark.parametrize("how", ["closes", "resets"])
def test_who_leaves_in_the_middle_of_an_answer_frees_the_engine(
    server, models, question, stream, how
) -> None:
    with server.connect() as connection:
        send(connection, models.long(question(), 1500, stream=stream))
        wait_until(server.running, "the answer is being computed")
        if stream:
            assert b"assistant" in connection.recv(1 << 16)
        if how == "resets":
            reset(connection)
    state = server.wait_idle()
    assert state["recent"][0]["status"] == 499
    assert server.post(chat(question())).status == 200


@BOTH_WAYS
def test_who_leaves_the_queue_is_never_computed(server, models, question, stream) -> None:
    """One more than can run: it waits, leaves, and the others go on."""
    crowd = [server.connect() for _ in range(MAX_RUNNING)]
    connections = [one.__enter__() for one in crowd]
    try:
        for connection in connections:
            send(connection, models.long(question(), 1500, stream=True))
        wait_until(lambda: server.running() == MAX_RUNNING, "all places are taken")
        with server.connect() as late:
            send(late, models.long(question(), 1500, stream=stream))
            wait_until(lambda: server.running() == MAX_RUNNING + 1, "one waits")
        wait_until(lambda: server.state()["inflight"] == MAX_RUNNING, "it has left")
        wait_until(lambda: server.running() == MAX_RUNNING, "it is forgotten")
    finally:
        for one in crowd:
            one.__exit__(None, None, None)


@BOTH_WAYS
def test_n_choices_all_end_when_their_caller_leaves(server, models, question, stream) -> None:
    with server.connect() as connection:
        send(connection, models.long(question(), 1200, stream=stream, n=4, seed=1))
        wait_until(lambda: server.running() == 4, "all four are being computed")
    server.wait_idle()


def test_who_joined_goes_on_when_the_first_caller_leaves(server, models, question) -> None:
    """They share one generation; it ends with its last listener and not with its first."""
    asked = models.long(question(), 500, stream=True)
    with server.connect() as second:
        with server.connect() as first:
            send(first, asked)
            wait_until(server.running, "the first is being computed")
            send(second, asked)
            wait_until(lambda: server.state()["inflight"] == 2, "the second has come")
            assert server.running() == 1
        reply = read_reply(second)
    assert reply.headers["sluice-origin"] == "joined"
    assert reply.events[-1] == "[DONE]"


def test_who_joined_and_leaves_does_not_end_it_for_the_others(server, models, question) -> None:
    asked = models.long(question(), 500, stream=True)
    with server.connect() as first:
        send(first, asked)
        wait_until(server.running, "the first is being computed")
        with server.connect() as second:
            send(second, asked)
            wait_until(lambda: server.state()["inflight"] == 2, "the second has come")
        assert read_reply(first).events[-1] == "[DONE]"


def test_a_reader_who_stops_reading_holds_up_nobody(server, models, question) -> None:
    """The answer is two megabytes (4 choices and all that logprobs tell), the reader's window as
    small as the system allows."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(("127.0.0.1", server.port))
        more = {"stream": True, "n": 4, "logprobs": True, "top_logprobs": 20, "seed": 2}
        send(connection, models.long(question(), 400, **more))
        wait_until(server.running, "the answer is being computed")
        for _ in range(5):
            assert server.post(chat(question())).status == 200


def test_sixty_four_callers_who_leave_when_they_like_leave_nothing_behind(
    server, models, question
) -> None:
    """Streams and whole answers, most of them queued; some are read to their end."""
    dice = random.Random(7)
    plans = [(dice.random() < 0.5, dice.choice([0, 1, 500, 3000, None])) for _ in range(64)]

    def call(plan: tuple[bool, int | None]) -> None:
        stream, patience_bytes = plan
        body = models.long(question(), 40, stream=stream, n=1 + (patience_bytes == 1))
        with server.connect() as connection:
            send(connection, body)
            if patience_bytes is None:
                reply = read_reply(connection)
                assert reply.status == 200
                assert not stream or reply.events[-1] == "[DONE]"
            elif patience_bytes:
                connection.recv(patience_bytes)

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(call, plans))
    server.wait_idle()


def test_pipelined_requests_are_answered_in_order(server, question) -> None:
    bodies = [chat(question(), max_tokens=n) for n in (3, 1, 2)]
    with server.connect() as connection:
        connection.sendall(b"".join(post_bytes(json.dumps(body).encode()) for body in bodies))
        answers = read_replies(connection, len(bodies))
    counts = [answer.json["usage"]["completion_tokens"] for answer in answers]
    assert [answer.status for answer in answers] == [200] * 3
    assert counts[0] >= counts[2] >= counts[1]
