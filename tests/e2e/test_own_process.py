"""`[engine] process = "own"`: the same answers, and an engine that may die without the gateway."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import (
    COMPLETIONS,
    Program,
    Reply,
    pages_of,
    post_bytes,
    read_reply,
    running,
    wait_until,
)
from tests.support.served import Models, chat


@pytest.fixture(scope="module")
def own(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    settings = models.settings.replace("[engine]\n", '[engine]\nprocess = "own"\n')
    with running(tmp_path_factory.mktemp("own"), settings) as one:
        yield one


def engine_of(program: Program) -> int:
    """The process id of its engine; 0: it has none now."""
    assert program.process is not None
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if int(parent) == program.process.pid and state != "Z":
            return int(stat.parent.name)
    return 0


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def said(reply: Reply) -> dict[str, Any]:
    """What does not depend on when and where it was said."""
    assert reply.status == 200, reply.body
    return {key: reply.json[key] for key in ("object", "model", "choices")}


def test_greedy_answers_are_those_of_an_engine_in_the_gateways_process(
    own: Program, server: Program, question: Callable[[], str]
) -> None:
    for model in ("small", "large"):
        text = question()
        asked = chat(text, model=model, temperature=0, max_tokens=40)
        assert said(own.post(asked)) == said(server.post(asked))
        streamed = own.post({**asked, "stream": True}, cache_control="no-cache")
        assert streamed.events[-1] == "[DONE]"
        assert streamed.streamed_text == own.post(asked).text
    probable = chat(question(), temperature=0, logprobs=True, top_logprobs=3)
    assert said(own.post(probable)) == said(server.post(probable))
    several = chat(question(), temperature=0.8, seed=5, n=3, stop=["e"])
    assert said(own.post(several)) == said(server.post(several))
    raw = {"model": "small", "prompt": question(), "max_tokens": 20, "temperature": 0}
    assert said(own.post(raw, COMPLETIONS)) == said(server.post(raw, COMPLETIONS))


def test_refusals_are_those_of_an_engine_in_the_gateways_process(
    own: Program, server: Program
) -> None:
    for wrong in ({"max_tokens": 100_000}, {"tools": [{"type": "function"}]}):
        asked = chat("Hello", **wrong)
        here, there = server.post(asked), own.post(asked)
        assert (there.status, there.error) == (here.status, here.error)
        assert there.status == 400


def test_what_the_engine_does_is_seen_as_ever(own: Program) -> None:
    state = own.wait_idle()
    assert {name: sum(one["pages"].values()) > 0 for name, one in state["engine"].items()} == {
        "small": True,
        "large": True,
    }
    metrics = own.get("/metrics").body.decode()
    assert 'sluice_engine_tokens_total{kind="completion",model="small"}' in metrics


def test_who_hangs_up_frees_every_page(
    own: Program, models: Models, question: Callable[[], str]
) -> None:
    pages = pages_of(own.wait_idle())
    connection = begun(own, models.long(question(), stream=True))
    wait_until(own.running, "it runs")
    connection.close()
    assert pages_of(own.wait_idle()) == pages


def begun(program: Program, asked: dict[str, Any]) -> socket.socket:
    """A connection whose answer has begun."""
    connection = socket.create_connection(("127.0.0.1", program.port), 60.0)
    connection.sendall(post_bytes(json.dumps(asked).encode()))
    assert b"200" in connection.recv(1 << 12, socket.MSG_PEEK)
    return connection


def test_an_engine_that_is_killed_costs_its_requests_and_no_others(
    own: Program, models: Models, question: Callable[[], str]
) -> None:
    kept = chat(question(), temperature=0)
    first = own.post(kept)
    streams = [begun(own, models.long(question(), stream=True)) for _ in range(4)]
    replies: list[Reply] = []
    whole = threading.Thread(target=lambda: replies.append(own.post(models.long(question()))))
    whole.start()
    wait_until(lambda: own.running() >= 5, "all run")
    engine = engine_of(own)
    os.kill(engine, signal.SIGKILL)
    for connection in streams:
        with connection:
            cut = read_reply(connection)
        assert "[DONE]" not in cut.events
        assert "process ended" in cut.events[-1]["error"]["message"]
        assert cut.headers["x-request-id"] in cut.events[-1]["error"]["message"]
    whole.join()
    assert replies[0].status == 500
    assert "try again" in replies[0].error["message"]
    again = own.post(kept)  # from the cache, whatever the engine is doing
    assert again.headers["sluice-origin"] == "exact"
    assert again.text == first.text
    wait_until(lambda: own.get("/readyz").status == 200, "it is ready again")
    assert engine_of(own) not in {0, engine}
    assert own.alive
    assert own.post(chat(question())).status == 200
    own.wait_idle()


def test_an_engine_that_is_stopped_is_replaced_and_keeps_no_shutdown_waiting(
    own: Program, models: Models, question: Callable[[], str]
) -> None:
    streams = [begun(own, models.long(question(), stream=True)) for _ in range(4)]
    engine = engine_of(own)
    os.kill(engine, signal.SIGSTOP)
    wait_until(lambda: own.get("/readyz").status == 503, "it is noticed", 90.0)
    cut = []
    for connection in streams:
        with connection:
            cut.append(read_reply(connection))
    ids = [reply.headers["x-request-id"] for reply in cut]
    for reply, own_id in zip(cut, ids, strict=True):
        message = reply.events[-1]["error"]["message"]
        assert [one for one in ids if one in message] == [own_id]
    wait_until(lambda: own.get("/readyz").status == 200, "it is ready again")
    assert own.post(chat(question())).status == 200
    os.kill(engine_of(own), signal.SIGSTOP)
    began = time.monotonic()
    own.signal(signal.SIGTERM)
    assert own.wait() == 0, own.logged()[-4000:]
    assert time.monotonic() - began < 20.0
    own.start()


def test_at_sigterm_streams_end_well_and_both_processes_are_gone(
    own: Program, models: Models, question: Callable[[], str]
) -> None:
    connection = begun(own, models.long(question(), 60, stream=True))
    engine = engine_of(own)
    assert engine
    os.kill(engine, signal.SIGTERM)  # as a service manager does, to all processes of a service
    own.signal(signal.SIGTERM)
    with connection:
        assert read_reply(connection).events[-1] == "[DONE]"
    assert own.wait() == 0, own.logged()[-4000:]
    wait_until(lambda: not runs(engine), "the engine is gone")


def test_a_gateway_that_is_killed_takes_its_engine_along(
    own: Program, question: Callable[[], str]
) -> None:
    own.start()
    assert own.post(chat(question())).status == 200
    engine = engine_of(own)
    assert runs(engine)
    own.kill()
    wait_until(lambda: not runs(engine), "the engine is gone")
