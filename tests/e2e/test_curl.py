"""curl against the real server: what people paste first."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from tests.support.program import PATIENCE_S
from tests.support.served import ALICE, chat

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")

JSON = ("-H", "content-type: application/json")


@dataclass(frozen=True, slots=True)
class Shown:
    status: int
    headers: str
    body: str


@pytest.fixture
def curl(server):
    """Runs curl on a path of the server: status, headers and body of what it shows."""

    def run(path: str, *arguments: str, sent: bytes = b"") -> Shown:
        command = ["curl", "-sS", "-i", *arguments, f"{server.base_url}{path}"]
        done = subprocess.run(
            command, input=sent, capture_output=True, timeout=PATIENCE_S, check=True
        )
        head, _, body = done.stdout.decode().rpartition("\r\n\r\n")
        last = head.split("\r\n\r\n")[-1]  # after a "100 Continue"
        return Shown(int(last.split()[1]), last.lower(), body)

    return run


def test_the_line_of_the_greeting_works_as_it_is(server) -> None:
    line = next(text for text in server.logged().splitlines() if text.startswith("  curl "))
    done = subprocess.run(
        line.replace("YOUR-KEY", ALICE), shell=True, capture_output=True, timeout=60, check=True
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_a_question_is_answered_without_a_content_type(curl, question) -> None:
    """curl says that it posts a form; what counts is the body."""
    shown = curl("/v1/chat/completions", "-d", json.dumps(chat(question())))
    assert shown.status == 200
    assert json.loads(shown.body)["choices"][0]["message"]["role"] == "assistant"


def test_a_stream_is_lines_of_events_that_end_with_done(curl, question) -> None:
    asked = json.dumps(chat(question(), stream=True))
    shown = curl("/v1/chat/completions", "-N", *JSON, "-d", asked)
    assert "content-type: text/event-stream" in shown.headers
    assert "sluice-origin: small" in shown.headers
    events = [event for event in shown.body.split("\n\n") if event]
    assert all(event.startswith(("data: {", ":")) for event in events[:-1])
    assert events[-1] == "data: [DONE]"


def test_http_1_0_is_answered(curl, question) -> None:
    for stream in (False, True):
        asked = json.dumps(chat(question(), stream=stream))
        shown = curl("/v1/chat/completions", "--http1.0", *JSON, "-d", asked)
        assert shown.status == 200
        assert "assistant" in shown.body
        assert "connection: close" in shown.headers


def test_a_large_body_that_asks_first_is_refused_before_it_is_sent(curl) -> None:
    """curl sends `Expect: 100-continue` with a large body and waits for the word."""
    shown = curl(
        "/v1/chat/completions",
        *JSON,
        "-H",
        "expect: 100-continue",
        "--data-binary",
        "@-",
        sent=b"x" * (2 << 20),
    )
    assert shown.status == 413
    assert "max_body_bytes" in json.loads(shown.body)["error"]["message"]


def test_a_key_that_nobody_has_is_refused(curl, question) -> None:
    shown = curl(
        "/v1/chat/completions",
        "-H",
        "authorization: Bearer sk-nobody",
        "-d",
        json.dumps(chat(question())),
    )
    assert shown.status == 401
    assert json.loads(shown.body)["error"]["code"] == "invalid_api_key"
