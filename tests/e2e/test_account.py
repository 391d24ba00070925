"""What the account says is what callers were given, and it outlives `kill -9`."""

from __future__ import annotations

import csv
import io
import threading
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from gateway.observe.rollup import TECHNIQUES
from tests.support.program import Program, running, wait_until
from tests.support.served import ALICE, Models, chat


@pytest.fixture
def own(models: Models, tmp_path: Path) -> Any:
    with running(tmp_path, models.settings) as one:
        yield one


def usage(server: Program, more: str = "") -> dict[str, Any]:
    reply = server.get(f"/admin/usage?{more}")
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json
    return found


def adds_up(row: dict[str, int]) -> bool:
    avoided = sum(row[f"avoided_{by}"] for by in TECHNIQUES)
    tokens = row["prompt_tokens"] + row["completion_tokens"]
    return (
        row["counterfactual"] + row["waste"] == row["spent"] + avoided
        and tokens == row["on_large_tokens"] + sum(row[f"tokens_{by}"] for by in TECHNIQUES)
    )  # fmt: skip


def test_every_answer_whose_end_was_delivered_is_in_the_account_after_kill_9(own: Program) -> None:
    """Killed in the middle of answering eight callers: what they had in full is in it."""
    delivered: list[int] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                reply = own.post(chat(f"{number} {turn // 3}: tell me something.", max_tokens=4))
            except (OSError, ValueError, HTTPException):
                return
            if reply.status == 200:
                delivered.append(reply.json["usage"]["completion_tokens"])

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    wait_until(lambda: len(delivered) >= 60, "enough is answered")
    own.kill()
    stop.set()
    for caller in callers:
        caller.join()
    own.start()
    totals = usage(own, "by=")["totals"]
    assert adds_up(totals)
    # A caller may be cut between its booking and its last byte: one for each of the eight, at most.
    assert 0 <= totals["requests"] - len(delivered) <= 8
    assert totals["completion_tokens"] >= sum(delivered)


def test_what_is_kept_on_disk_is_for_its_owner_alone(own: Program) -> None:
    own.post(chat("Who may read this?"))
    kept = [path for path in (own.home / ".sluice").rglob("*") if path.is_file()]
    assert {"exact.db", "ledger.db", "keys.db"} <= {path.name for path in kept}
    assert [path.name for path in kept if path.stat().st_mode & 0o077] == []


def test_usage_is_told_by_who_and_when_and_as_csv(own: Program) -> None:
    for _ in range(2):
        assert own.post(chat("What is a sluice?")).status == 200
    own.post(chat("What is a lock?", model="large"), authorization=f"Bearer {ALICE}")
    told = usage(own, "step=hour&by=tenant,model,origin")
    assert all(adds_up(row) for row in told["rows"])
    who = {(row["tenant"], row["model"], row["origin"]): row["requests"] for row in told["rows"]}
    assert who == {
        ("default", "small", "small"): 1,
        ("default", "small", "exact"): 1,
        ("alice", "large", "large"): 1,
    }
    (mine,) = usage(own, "tenant=alice&by=tenant")["rows"]
    assert mine["requests"] == 1
    reply = own.get("/admin/usage?format=csv&by=origin")
    assert reply.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(reply.body.decode())))
    assert {row["origin"]: row["requests"] for row in rows} == {
        "exact": "1",
        "small": "1",
        "large": "1",
    }


def test_csv_and_json_carry_the_same_fields(own: Program) -> None:
    assert own.post(chat("What is a weir?")).status == 200
    asked = "step=hour&by=tenant,model,origin,status"
    told = usage(own, asked)
    [row] = told["rows"]
    reply = own.get(f"/admin/usage?{asked}&format=csv")
    [line] = csv.DictReader(io.StringIO(reply.body.decode()))
    assert [name.removesuffix("_usd") for name in line] == list(row)
    for name, value in line.items():
        if name.endswith("_usd"):
            assert round(float(value) * 1e9) == row[name.removesuffix("_usd")]
        else:
            assert value == str(row[name])
    assert {line["part"]} == {told["part"]}


def test_a_tenant_without_rows_and_one_that_is_no_more_can_be_asked_for(own: Program) -> None:
    assert usage(own, "tenant=bob")["rows"] == []
    own.post(chat("What is a lock?"), authorization=f"Bearer {ALICE}")
    own.stop()
    settings = own.home / "sluice.toml"
    settings.write_text(settings.read_text().replace('name = "alice"', 'name = "carol"'))
    own.start()
    [row] = usage(own, "tenant=alice&by=tenant")["rows"]
    assert row["requests"] == 1
    assert usage(own, "tenant=alice&start=2001-01-01&end=2001-01-02")["rows"] == []
    assert own.get("/admin/usage?tenant=mallory").status == 400


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("start=yesterday", "ISO 8601"),
        ("start=2026-01-02&end=2026-01-01", "before"),
        ("by=colour", "tenant, model, origin, status"),
        ("end=9999-12-31T23:59:59Z", "from 1970 to 2999"),
        ("tenants=acme", "tenants"),
        ("tenant=nobody", "alice, bob, default"),
    ],
)
def test_a_question_that_makes_no_sense_is_a_400_with_the_remedy(
    server: Program, asked: str, says: str
) -> None:
    reply = server.get(f"/admin/usage?{asked}")
    assert reply.status == 400
    assert says in reply.error["message"]


def test_a_request_is_explained_by_its_id_also_after_a_restart(own: Program) -> None:
    miss = own.post(chat("Why is the sky blue?")).json["id"]
    hit = own.post(chat("Why is the sky blue?")).json["id"]
    (story,) = own.get(f"/admin/decisions/{hit}").json["decisions"]
    assert story["verdict"].startswith("Hit")
    assert story["money_nano"]["spent"] == 0
    own.stop()
    own.start()
    (story,) = own.get(f"/admin/decisions/{miss}").json["decisions"]
    assert story["verdict"].startswith("Miss")
    assert story["story"][0]["outcome"] == "exact miss"
    gone = own.get("/admin/decisions/nobody")
    assert gone.status == 404
    assert "forgotten" in gone.error["message"]
