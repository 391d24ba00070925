"""Models elsewhere, asked over loopback: another Sluice, and a server that nobody here wrote."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.catalog import LONGEST_UNKNOWN
from tests.support.program import PATIENCE_S, Program, quiet_environment, running, wait_until
from tests.support.redis_server import free_port
from tests.support.served import ALICE, Models, chat
from tests.support.upstream import Asked, Writer, piece, stream, upstream

FRONT = """
[server]
port = 0

[models.small]
kind = "openai"
base_url = "{base_url}/v1"
model = "small"
allow_private = true
price_in = 0.05
price_out = 0.20
{small}

[models.large]
kind = "openai"
base_url = "{base_url}/v1"
model = "{large}"
allow_private = true
price_in = 0.50
price_out = 2.00
{more}

[logs]
format = "json"

[[tenants]]
name = "default"
aliases = {{ "gpt-4o" = "auto", "gpt-4o-mini" = "small" }}
"""


@pytest.fixture(scope="module")
def front(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A Sluice without an engine, in front of the one that has it."""
    settings = FRONT.format(base_url=program.base_url, large="large", small="", more="")
    with running(tmp_path_factory.mktemp("front"), settings) as one:
        yield one


# --------------------------------------------------------------------------- another Sluice


@pytest.mark.parametrize("model", ["small", "large"])
def test_what_another_sluice_says_is_passed_on(
    server: Program, front: Program, question, model: str
) -> None:
    asked = chat(question(), model=model, logprobs=True, top_logprobs=2, temperature=0)
    there, here = server.post(asked), front.post(asked)
    assert here.text == there.text
    assert here.json["choices"] == there.json["choices"]
    usages = [reply.json["usage"] for reply in (here, there)]
    assert usages[0]["completion_tokens"] == usages[1]["completion_tokens"]
    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"]
    assert here.headers["sluice-origin"] == model
    streamed = front.post({**asked, "stream": True}, cache_control="no-store")
    assert streamed.streamed_text == there.text


def test_what_another_sluice_refuses_is_the_callers_to_read(front: Program, question) -> None:
    refused = front.post(chat(question(), model="small", temperature=-3))
    assert refused.status == 400
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    there = front.post(chat(question(), model="small", tools=tools))
    assert there.status == 400
    assert "tools" in there.error["message"]


def test_an_alias_is_auto_and_a_conversation_stays_where_it_is(front: Program, question) -> None:
    first = front.post(chat(question(), model="gpt-4o"))
    assert first.headers["sluice-policy"].startswith("quality; uncalibrated")
    turns = [
        {"role": "user", "content": "Once more"},
        {"role": "assistant", "content": first.text or "…"},
        {"role": "user", "content": question()},
    ]
    origin = first.headers["sluice-origin"]
    again = front.post(chat("", model="gpt-4o", messages=turns))
    assert again.headers["sluice-origin"] in {origin, "large"}
    assert front.post(chat(question(), model="gpt-4o-mini")).headers["sluice-origin"] == "small"


def test_a_hang_up_reaches_the_engine_of_the_other(
    server: Program, front: Program, models: Models, question
) -> None:
    body = json.dumps(models.long(question(), 1500, model="large", stream=True)).encode()
    with front.connect() as connection:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        assert connection.recv(1024).startswith(b"HTTP/1.1 200")
        wait_until(lambda: server.running() >= 1, "the other computes")
    server.wait_idle()


def test_the_other_gone_is_an_upstream_failure_and_a_fallback_answers(
    program: Program, tmp_path: Path, question
) -> None:
    closed = free_port()
    elsewhere = f"""
[models.gone]
kind = "openai"
base_url = "http://127.0.0.1:{closed}/v1"
allow_private = true

[models.saved]
kind = "openai"
base_url = "http://127.0.0.1:{closed}/v1"
allow_private = true
fallbacks = ["small"]
"""
    settings = FRONT.format(base_url=program.base_url, large="large", small="", more=elsewhere)
    with running(tmp_path, settings) as one:
        gone = one.post(chat(question(), model="gone"))
        assert gone.status == 502
        assert "gone" in gone.error["message"]
        saved = one.post(chat(question(), model="saved"))
        assert saved.status == 200
        assert saved.headers["sluice-origin"] == "small"


def test_a_key_is_read_from_the_environment_and_opens_the_other(
    program: Program, tmp_path: Path, question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THERE_KEY", ALICE)
    key = 'api_key_env = "THERE_KEY"'
    settings = FRONT.format(base_url=program.base_url, large="gpt-4o", small=key, more=key)
    with running(tmp_path, settings) as one:
        assert one.post(chat(question(), model="large")).status == 200, "alice's alias there"
        assert ALICE not in one.logged()


async def _long_winded(asked: Asked, writer: Writer) -> None:
    """30,000 tokens, or as many as it may; after a while, so that many run at one time."""
    await asyncio.sleep(0.5)
    tokens = min(30_000, asked.body.get("max_tokens", 30_000))
    usage = {"prompt_tokens": 5, "completion_tokens": tokens}
    await stream(piece("well"), piece(None, "length"), {"choices": [], "usage": usage})(
        asked, writer
    )


BUDGETED = """
[server]
port = 0

[models.far]
kind = "openai"
base_url = "{url}"
allow_private = true
price_in = 10.0
price_out = 10.0

[cascade]
small = "far"
large = "far"

[[tenants]]
name = "default"

[[tenants]]
name = "thrifty"
keys = ["{key}"]
budget_usd_day = 1.0
"""


async def test_a_model_elsewhere_cannot_overspend_a_budget_by_long_answers(tmp_path: Path) -> None:
    def ask_all(url: str) -> tuple[list[int], float]:
        settings = BUDGETED.format(url=url, key=hashlib.sha256(ALICE.encode()).hexdigest())
        with running(tmp_path, settings) as one, ThreadPoolExecutor(14) as callers:

            def ask(number: int) -> int:
                body = {"model": "far", "messages": [{"role": "user", "content": f"{number}?"}]}
                return one.post(body, authorization=f"Bearer {ALICE}").status

            statuses = list(callers.map(ask, range(14)))
            free = one.post({"model": "far", "messages": [{"role": "user", "content": "?"}]})
            assert free.json["usage"]["completion_tokens"] == 30_000
            [budget] = one.get("/admin/tenants/thrifty").json["budgets"]
            return statuses, budget["used_usd"]

    async with upstream(_long_winded) as server:
        statuses, used_usd = await asyncio.to_thread(ask_all, server.url)
    assert set(statuses) == {200, 429}
    assert used_usd <= 1.0
    *paid, free = (asked.body.get("max_tokens") for asked in server.asked)
    assert (set(paid), free) == ({LONGEST_UNKNOWN}, None)


# --------------------------------------------------------------------------- transformers serve


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def foreign(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with the small model: its base URL."""
    pytest.importorskip("accelerate", reason="transformers serve needs it")
    home = tmp_path_factory.mktemp("foreign")
    port = free_port()
    program = Path(sys.executable).parent / "transformers"
    command = [str(program), "serve", str(models.small), "--host", "127.0.0.1", "--port", str(port)]
    environ = {**quiet_environment(), "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"],
            env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(url) or process.poll() is not None, "transformers serves", 600.0)
        assert process.poll() is None, (home / "log").read_text("utf-8", "replace")[-2000:]
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.mark.slow
def test_a_server_that_nobody_here_wrote_is_a_model_like_any_other(
    server: Program, foreign: str, models: Models, tmp_path: Path
) -> None:
    named = os.fspath(models.small)
    settings = FRONT.format(
        base_url=foreign, large=named, small="logprobs = false", more="logprobs = false"
    ).replace('model = "small"', f'model = "{named}"')
    with running(tmp_path, settings) as one:
        asked = chat("What is 2 + 3?", model="small", temperature=0)
        here, there = one.post(asked), server.post(asked)
        assert here.text == there.text, "the same weights, greedy, by two engines"
        assert here.json["usage"]["prompt_tokens"] == there.json["usage"]["prompt_tokens"]
        assert here.json["choices"][0]["finish_reason"] == there.json["choices"][0]["finish_reason"]
        streamed = one.post({**asked, "stream": True}, cache_control="no-store")
        assert streamed.streamed_text == there.text
        assert streamed.events[-1] == "[DONE]"
        auto = one.post(chat("What is 4 + 4?", model="auto", temperature=0))
        assert auto.headers["sluice-origin"] == "large", "no log-probabilities, no judgement"
        again = one.post(chat("What is 4 + 4?", model="auto", temperature=0))
        assert "exact; hit" in again.headers["cache-status"]
