"""The end of a server, and its next life on the same state: nothing torn, nothing lost.

One server lives through this file: it is killed, started again, and told to end.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
import time

import pytest

from tests.support.program import PATIENCE_S, Program, post_bytes, read_reply, running, wait_until
from tests.support.served import chat

SERVED = 60
"""Answers before the kill; the last of them may be lost, which is what a cache may do."""


@pytest.fixture(scope="module")
def own(models, tmp_path_factory):
    """A server to kill."""
    patient = models.settings.replace("shutdown_grace_s = 20.0", "shutdown_grace_s = 170.0")
    patient += "\n[cache.exact]\npatience_s = 5.0\n"
    with running(tmp_path_factory.mktemp("own"), patient) as one:
        yield one


def ask_until_killed(server: Program, answers: dict[str, str]) -> None:
    try:
        for number in range(10_000):
            text = f"Question {number}"
            reply = server.post(chat(text, max_tokens=6))
            answers[text] = reply.text
    except (OSError, ConnectionError, json.JSONDecodeError):
        return


def test_after_kill_9_what_was_stored_is_served_and_nothing_is_torn(own, models, question) -> None:
    answers: dict[str, str] = {}
    asking = threading.Thread(target=ask_until_killed, args=(own, answers))
    asking.start()
    with own.connect() as connection:  # a stream is cut in the middle, too
        cut = models.long("Cut me off", 1500, stream=True)
        connection.sendall(post_bytes(json.dumps(cut).encode()))
        wait_until(lambda: len(answers) >= SERVED, "enough is answered")
        own.kill()
    asking.join()

    own.start()
    hits = 0
    for text, said in list(answers.items())[:SERVED]:
        reply = own.post(chat(text, max_tokens=6))
        assert reply.text == said
        hits += reply.headers["sluice-origin"] == "exact"
        assert reply.computed == 0 or reply.headers["sluice-origin"] == "small"
    assert hits >= SERVED - 20
    assert own.post(cut | {"stream": False}, cache_control="only-if-cached").status == 504

    files = {file.name: file for file in (own.home / ".sluice").glob("*.db")}
    assert {"exact.db", "ledger.db"} <= files.keys()
    for file in files.values():
        with sqlite3.connect(file) as database:
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def test_sigterm_lets_a_stream_end_and_takes_nothing_new(own, models, question) -> None:
    if not own.alive:
        own.start()
    with own.connect() as streaming, own.connect() as late:
        asked = models.long(question(), 900, stream=True)
        streaming.sendall(post_bytes(json.dumps(asked).encode()))
        wait_until(own.running, "the answer is being computed")
        late.sendall(b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert read_reply(late, "GET").status == 200
        own.signal(signal.SIGTERM)
        wait_until(lambda: is_refused(own, late, question()), "new requests are refused")
        reply = read_reply(streaming)
    assert reply.events[-1] == "[DONE]"
    assert own.wait() == 0


def is_refused(server, connection, text) -> bool:
    """Over a connection that was there before: the listener may be closed already."""
    connection.sendall(post_bytes(json.dumps(chat(text, max_tokens=1)).encode()))
    reply = read_reply(connection)
    if reply.status == 200:
        return False
    assert reply.status == 503
    assert reply.error["code"] == "shutting_down"
    assert int(reply.headers["retry-after"]) >= 1
    return True


@pytest.mark.slow
def test_a_stream_that_outlasts_the_grace_is_told_and_the_server_ends(
    models, tmp_path, question
) -> None:
    settings = models.settings.replace("shutdown_grace_s = 20.0", "shutdown_grace_s = 0.2")
    with running(tmp_path, settings) as own, own.connect() as streaming:
        asked = models.long(question(), 1900, stream=True)
        streaming.sendall(post_bytes(json.dumps(asked).encode()))
        wait_until(own.running, "the answer is being computed")
        started = time.monotonic()
        own.signal(signal.SIGTERM)
        reply = read_reply(streaming)
        assert own.wait() == 0
        assert time.monotonic() - started < PATIENCE_S
    assert reply.events[-1]["error"]["code"] == "shutting_down"
    assert "Traceback" not in own.logged()
