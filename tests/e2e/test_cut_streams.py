"""Callers who leave in the middle pay what was computed for them, and every account says the same:
the ledger's row, the budget, the tokens per minute, and what the engine itself counts.

Each case has a tenant of its own, so that its figures are all there are. Of a model elsewhere the
gateway knows what it heard, or what that server counted; of its own it knows every token.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from typing import Any

import pytest

from tests.support.program import Program, post_bytes, running, wait_until
from tests.support.served import Models, chat
from tests.support.upstream import chunked, event, piece

TPM, WINDOW_S = 1_000_000, 60.0
PRICES = {"small": (50, 200), "large": (500, 2000), "far": (70, 300)}
"""Nano-US-dollars a token of prompt and answer: what the settings say."""
PIECES = 7
CASES = (
    "engine-middle", "engine-whole", "engine-early", "engine-chosen", "engine-auto",
    "far-heard", "far-counted", "far-silent",
)  # fmt: skip
MESSAGE_TOKENS = 4
"""What a message's frame is estimated at, beside a token for each four characters."""

FAR = """
[models.{name}]
kind = "openai"
base_url = "{url}"
model = "{name}"
allow_private = true
price_in = 0.07
price_out = 0.30
"""
TENANT = """
[[tenants]]
name = "{name}"
keys = ["{key}"]
budget_usd_day = 100.0
tpm = {tpm}
"""


class HalfAnAnswer(BaseHTTPRequestHandler):
    """What its model's name says, then silence until the other side hangs up."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        model = json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]
        if model != "far-silent":
            said = [piece(f"w{at} ") for at in range(PIECES)]
            if model == "far-counted":
                usage = {"prompt_tokens": 31, "completion_tokens": 5}
                said.append({"choices": [], "usage": usage})
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"".join(chunked(event(one)) for one in said))
        with suppress(ConnectionError):
            self.connection.recv(1)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The base URL of a server on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), HalfAnAnswer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module", params=["shared", "own"])
def gateway(
    request: pytest.FixtureRequest,
    models: Models,
    elsewhere: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Program]:
    """With the engine in the gateway's process, and in one of its own."""
    far = [FAR.format(name=name, url=elsewhere) for name in CASES if name.startswith("far")]
    hashes = {name: hashlib.sha256(f"sk-{name}".encode()).hexdigest() for name in CASES}
    tenants = [TENANT.format(name=name, key=key, tpm=TPM) for name, key in hashes.items()]
    engine = models.settings.replace("[engine]\n", f'[engine]\nprocess = "{request.param}"\n')
    settings = engine + "".join(far + tenants)
    with running(tmp_path_factory.mktemp("cut"), settings) as one:
        yield one


@dataclass(frozen=True, slots=True)
class Account:
    """What a tenant used, as each of those who count says it. Money in nano-US-dollars."""

    row: dict[str, int]
    statuses: set[str]
    budget: int
    rate: int


def account_of(gateway: Program, tenant: str) -> Account:
    found = gateway.get(f"/admin/usage?tenant={tenant}&by=status").json
    (budget,) = gateway.get(f"/admin/tenants/{tenant}").json["budgets"]
    refused = gateway.post(b"{", authorization=f"Bearer sk-{tenant}")
    return Account(
        found["totals"],
        {row["status"] for row in found["rows"] if row["requests"]},
        round(budget["used_usd"] * 1e9),
        TPM - int(refused.headers["x-ratelimit-remaining-tokens"]),
    )


@dataclass(frozen=True, slots=True)
class Computed:
    """Tokens of one model: of prompts, without what the prefix tree had, and of answers."""

    model: str
    prompt: int
    answer: int

    @property
    def cost(self) -> int:
        price_in, price_out = PRICES[self.model]
        return self.prompt * price_in + self.answer * price_out


def counted(gateway: Program, model: str) -> Computed:
    """Since its start, as the engine counts."""
    at_rest(gateway)
    text = gateway.get("/metrics").body.decode()
    found = re.findall(rf'sluice_engine_tokens_total{{kind="(\w+)",model="{model}"}} (\S+)', text)
    counts = {kind: int(float(count)) for kind, count in found}
    return Computed(model, counts["prompt"], counts["completion"])


def since(gateway: Program, before: Computed) -> Computed:
    now = counted(gateway, before.model)
    return Computed(before.model, now.prompt - before.prompt, now.answer - before.answer)


def leave(gateway: Program, tenant: str, body: dict[str, Any], until: str) -> None:
    """Ask, hang up once `until` was heard (nothing: while it is computed), and wait until that is
    settled."""
    key = f"authorization: Bearer sk-{tenant}\r\n"
    with gateway.connect() as connection:
        connection.sendall(post_bytes(json.dumps(body).encode(), headers=key))
        if until:
            hear(connection, until)
        elif tenant.startswith("engine"):
            wait_until(gateway.running, "it is being computed")
        else:
            wait_until(lambda: gateway.state()["inflight"] == 1, "it has come")
            time.sleep(0.3)
    at_rest(gateway)


def at_rest(gateway: Program) -> None:
    """Nothing is computed, and the figures of an engine elsewhere, a tenth of a second old, say
    so, too."""
    wait_until(lambda: gateway.state()["inflight"] == 0, "nobody is answered")
    time.sleep(0.3)
    gateway.wait_idle()


def hear(connection: socket.socket, until: str) -> None:
    heard = b""
    while until.encode() not in heard:
        more = connection.recv(1 << 16)
        assert more, heard
        heard += more


def assert_agreed(found: Account, took_s: float, *took: Computed) -> None:
    cost, tokens = sum(one.cost for one in took), sum(one.prompt + one.answer for one in took)
    assert found.statuses == {"499"}
    assert (found.row["spent"], found.row["waste"], found.budget) == (cost, cost, cost)
    assert found.row["wasted_tokens"] == tokens
    assert found.row["completion_tokens"] == 0, "nothing was delivered in full"
    # The window slides: what was taken before a minute's turn fades by the part that went by since.
    assert tokens * (1 - took_s / WINDOW_S) - 1 <= found.rate <= tokens


@pytest.mark.parametrize(
    ("tenant", "more", "until"),
    [
        ("engine-middle", {"stream": True}, '"content":"'),
        ("engine-whole", {}, ""),
        ("engine-auto", {"model": "auto", "stream": True}, '"content":"'),
    ],
)
def test_of_our_own_engine_all_say_what_it_drew(
    gateway: Program, models: Models, question, tenant: str, more: dict[str, Any], until: str
) -> None:
    began, before = time.monotonic(), [counted(gateway, name) for name in ("small", "large")]
    leave(gateway, tenant, models.long(question(), 1500, **more), until)
    took = [since(gateway, one) for one in before]
    assert sum(one.prompt for one in took)
    assert not until or sum(one.answer for one in took)
    found = account_of(gateway, tenant)
    assert_agreed(found, time.monotonic() - began, *took)


def test_the_prompt_of_several_choices_is_paid_once_and_each_of_their_tokens(
    gateway: Program, models: Models, question
) -> None:
    began, before, text = time.monotonic(), counted(gateway, "small"), question()
    body = models.long(text, 1200, stream=True, n=3, seed=3)
    leave(gateway, "engine-chosen", body, '"index":2')
    answer = since(gateway, before).answer
    assert answer >= 3
    found = account_of(gateway, "engine-chosen")
    prompt = gateway.post(chat(text, max_tokens=1)).json["usage"]["prompt_tokens"]
    assert_agreed(found, time.monotonic() - began, Computed("small", prompt, answer))


def test_before_the_first_token_all_say_how_far_the_prompt_was_read(
    gateway: Program, models: Models, question
) -> None:
    """A prompt of several steps, left as soon as it is in the engine."""
    began, before = time.monotonic(), counted(gateway, "small")
    words = " ".join(f"{at} and {at * 7}" for at in range(150))
    leave(gateway, "engine-early", models.long(question() + words, 100, stream=True), "")
    took = since(gateway, before)
    found = account_of(gateway, "engine-early")
    assert_agreed(found, time.monotonic() - began, took)


@pytest.mark.parametrize(
    ("tenant", "until", "answer"),
    [("far-heard", f"w{PIECES - 1} ", PIECES), ("far-silent", "", 0), ("far-counted", "", 5)],
)
def test_of_a_model_elsewhere_all_say_what_was_heard_or_what_it_counted(
    gateway: Program, question, tenant: str, until: str, answer: int
) -> None:
    text, began = question(), time.monotonic()
    leave(gateway, tenant, chat(text, model=tenant, stream=True), until)
    prompt = 31 if tenant == "far-counted" else ceil(len(text) / 4) + MESSAGE_TOKENS
    found = account_of(gateway, tenant)
    assert_agreed(found, time.monotonic() - began, Computed("far", prompt, answer))


def test_the_account_of_who_left_outlives_a_kill(gateway: Program, question) -> None:
    """The row and the budget are kept apart: both are there again."""
    leave(gateway, "far-heard", chat(question(), model="far-heard", stream=True), "w1 ")
    before = account_of(gateway, "far-heard")
    assert before.row["spent"] == before.budget
    gateway.kill()
    gateway.start()
    after = account_of(gateway, "far-heard")
    assert after.row["spent"] == before.row["spent"]
    # What a killed gateway had leased counts in full: a slice at most.
    assert before.budget <= after.budget <= before.budget + 2 * 10**9
