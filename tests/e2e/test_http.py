"""The real server on a real port, before any model: what HTTP itself promises."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from cache.store.base import StoreFault
from cache.store.memory import MemoryStore
from engine.contract import BadCall, Overloaded
from gateway.settings import Admin, Server, Tenant
from tests.support.fake import FakeModel
from tests.support.serving import Running, request_bytes, serving, settings_for_tests
from tests.support.speakers import PATIENCE_S

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hello there"}]}
BODY = json.dumps(ASKED).encode()


def slow(pause_s: float = 30.0) -> Mapping[str, FakeModel]:
    model = FakeModel(pause_s=pause_s)
    return {"small": model, "large": model}


def short(**limits: float) -> Any:
    base = settings_for_tests()
    return replace(base, server=replace(base.server, **limits))


async def until(condition: Any) -> None:
    """Wait for what must happen; the test's own failure is the time-out."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is the server's own
            await asyncio.sleep(0.005)


async def log_lines(running: Running, count: int, event: str = "request") -> list[dict[str, Any]]:
    """As soon as there are so many: lines are written a moment after the answer."""

    def found() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in running.logged.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    await until(lambda: len(found()) >= count)
    return found()


def events_of(text: str) -> list[Any]:
    data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


async def test_an_answer_says_where_it_came_from_and_a_second_one_is_a_hit() -> None:
    async with serving() as running:
        first = await running.client.post(CHAT, json=ASKED)
        second = await running.client.post(CHAT, json=ASKED)
    assert first.status_code == second.status_code == 200
    assert first.headers["sluice-origin"] == first.headers["sluice-model"] == "small"
    assert first.headers["cache-status"] == "exact; fwd=miss"
    assert second.headers["sluice-origin"] == "exact"
    assert second.headers["cache-status"].startswith("exact; hit; ttl=")
    assert 0 <= int(second.headers["age"]) < PATIENCE_S
    assert "exact;dur=" in second.headers["server-timing"]
    assert first.json()["choices"] == second.json()["choices"]
    assert first.json()["usage"]["sluice"]["computed_tokens"] > 0
    assert second.json()["usage"]["sluice"]["computed_tokens"] == 0
    assert first.json()["id"] != second.json()["id"]
    assert first.json()["id"].endswith(first.headers["x-request-id"])


async def test_a_stream_and_a_whole_answer_share_one_entry() -> None:
    streamed = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    async with serving() as running:
        live = await running.client.post(CHAT, json=streamed)
        replayed = await running.client.post(CHAT, json=streamed)
        whole = await running.client.post(CHAT, json=ASKED)
    assert live.headers["content-type"].startswith("text/event-stream")
    assert (live.headers["sluice-origin"], replayed.headers["sluice-origin"]) == ("small", "exact")
    assert whole.headers["sluice-origin"] == "exact"
    parts = [events_of(one.text) for one in (live, replayed)]
    assert parts[0][-1] == parts[1][-1] == "[DONE]"
    assert [c["choices"] for c in parts[0][:-1]] == [c["choices"] for c in parts[1][:-1]]
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in parts[0][:-2])
    assert said == whole.json()["choices"][0]["message"]["content"]
    assert live.text.split("\n\n")[-3].startswith(": Server-Timing: exact;dur=")


async def test_a_burst_arrives_in_one_write_and_live_pieces_as_they_come() -> None:
    streamed = json.dumps({**ASKED, "stream": True}).encode()
    async with serving(models=slow(0.05)) as running, running.connect() as (reader, writer):
        writer.write(request_bytes(streamed))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"sluice-origin: fake" in head
        first = await reader.readuntil(b"\n\n\r\n")
        assert b'"role":"assistant"' in first
        assert b"[DONE]" not in first
        await reader.readuntil(b"[DONE]")


async def test_no_store_and_only_if_cached_are_honoured() -> None:
    async with serving() as running:
        for _ in range(2):
            fresh = await running.client.post(
                CHAT, json=ASKED, headers={"cache-control": "no-store"}
            )
            assert fresh.headers["sluice-origin"] == "small"
        missed = await running.client.post(
            CHAT, json=ASKED, headers={"cache-control": "only-if-cached"}
        )
    assert missed.status_code == 504
    assert missed.json()["error"]["code"] == "not_cached"


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b'{"model": "\xff"}', 400, None),
        (json.dumps({**ASKED, "model": "gpt"}).encode(), 404, "model"),
        (json.dumps({**ASKED, "max_tokens": -1}).encode(), 400, "max_tokens"),
        (json.dumps({**ASKED, "max_tokens": 10**6}).encode(), 400, "max_tokens"),
        (json.dumps({**ASKED, "n": "two"}).encode(), 400, "n"),
        (json.dumps({**ASKED, "messages": []}).encode(), 400, "messages"),
        (json.dumps({**ASKED, "frobnicate": 1}).encode(), 400, "frobnicate"),
    ],
)
async def test_bad_input_gets_an_error_in_openais_shape_and_the_server_goes_on(
    content: bytes, status: int, param: str | None
) -> None:
    async with serving() as running:
        bad = await running.client.post(CHAT, content=content)
        good = await running.client.post(CHAT, json=ASKED)
    assert bad.status_code == status
    assert bad.json()["error"]["param"] == param
    assert set(bad.json()["error"]) == {"message", "type", "param", "code"}
    assert bad.headers["x-request-id"]
    assert good.status_code == 200


async def test_other_paths_and_methods_are_answered_in_the_same_shape() -> None:
    async with serving() as running:
        missing = await running.client.get("/v2/nothing")
        wrong = await running.client.get(CHAT)
        head = await running.client.head("/healthz")
        deleted = await running.client.delete("/v1/models")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "use POST" in wrong.json()["error"]["message"]
    assert head.status_code in {200, 405}
    assert deleted.status_code == 405


async def test_models_health_metrics_and_documentation_are_there() -> None:
    async with serving() as running:
        await running.client.post(CHAT, json=ASKED)
        models = (await running.client.get("/v1/models")).json()
        one = (await running.client.get("/v1/models/small")).json()
        none = await running.client.get("/v1/models/none")
        assert (await running.client.get("/healthz")).json() == {"status": "ok"}
        assert (await running.client.get("/readyz")).status_code == 200
        metrics = (await running.client.get("/metrics")).text
        document = (await running.client.get("/openapi.json")).json()
    assert [card["id"] for card in models["data"]] == ["auto", "small", "large"]
    assert one["context_length"] == 2048
    assert none.status_code == 404
    assert "sluice_requests_total" in metrics
    body = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].rsplit("/", 1)[1]
    assert "temperature" in document["components"]["schemas"][name]["properties"]


async def test_a_request_id_is_handed_back_if_it_can_be_trusted() -> None:
    async with serving() as running:
        mine = await running.client.post(CHAT, json=ASKED, headers={"x-request-id": "my-id_1"})
        odd = await running.client.post(CHAT, json=ASKED, headers={"x-request-id": "a b<c>"})
        lines = await log_lines(running, 2)
    assert mine.headers["x-request-id"] == "my-id_1"
    assert odd.headers["x-request-id"] != "a b<c>"
    assert lines[0]["client_id"] == "my-id_1"


async def test_logs_hold_names_and_numbers_and_no_content() -> None:
    secret = {**ASKED, "messages": [{"role": "user", "content": "xyzzy-secret"}]}
    async with serving() as running:
        await running.client.post(CHAT, json=secret)
        await running.client.post(CHAT, content=b'{"model": "xyzzy-secret"')
        lines = await log_lines(running, 2)
    assert [line["status"] for line in lines] == [200, 400]
    assert lines[0]["tenant"] == "default"
    assert lines[0]["completion_tokens"] > 0
    assert b"xyzzy" not in running.logged.getvalue()


async def test_a_failure_before_the_start_is_a_status_and_after_it_an_event() -> None:
    early = FakeModel(error=Overloaded("full", retry_after_s=2.0))
    late = FakeModel(late_error=BadCall("too long"), pause_s=0.01)
    async with serving(models={"small": early, "large": late}) as running:
        refused = await running.client.post(CHAT, json=ASKED)
        broken = await running.client.post(CHAT, json={**ASKED, "model": "large", "stream": True})
        whole = await running.client.post(CHAT, json={**ASKED, "model": "large"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert broken.status_code == 200
    assert events_of(broken.text)[-1]["error"]["message"] == "too long"
    assert whole.status_code == 400


async def test_an_answer_without_an_end_is_not_passed_off_as_complete() -> None:
    async with serving(
        models=dict.fromkeys(("small", "large"), FakeModel(end=False, pause_s=0.01))
    ) as running:
        streamed = await running.client.post(CHAT, json={**ASKED, "stream": True})
        whole = await running.client.post(CHAT, json=ASKED)
    assert "[DONE]" not in streamed.text
    assert "error" in events_of(streamed.text)[-1]
    assert whole.status_code == 500


async def test_our_own_mistake_is_a_500_that_tells_nothing_of_it() -> None:
    model = FakeModel(error=ZeroDivisionError("internals"))
    async with serving(models=dict.fromkeys(("small", "large"), model)) as running:
        broken = await running.client.post(CHAT, json=ASKED, headers={"cache-control": "no-store"})
        lines = await log_lines(running, 1, "request broke")
    assert broken.status_code == 500
    assert "internals" not in broken.text
    assert "ZeroDivisionError: internals" in lines[0]["exception"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_while_waiting_closes_the_answer(stream: bool) -> None:
    models = slow()
    body = json.dumps({**ASKED, "stream": stream}).encode()
    async with serving(models=models) as running, running.connect() as (_, writer):
        writer.write(request_bytes(body))
        await until(lambda: models["small"].calls)
        writer.transport.abort()
        await until(lambda: models["small"].closed_early)
        await until(lambda: running.system.drain.inflight == 0)
        (line,) = await log_lines(running, 1)
    assert line["status"] == 499


async def test_half_a_body_and_a_hang_up_leaves_nothing_behind() -> None:
    async with serving() as running, running.connect() as (_, writer):
        writer.write(request_bytes(BODY, length=10_000))
        await until(lambda: running.system.drain.inflight == 1)
        writer.transport.abort()
        await until(lambda: running.system.drain.inflight == 0)
        assert (await running.client.post(CHAT, json=ASKED)).status_code == 200


async def test_a_body_that_does_not_come_is_a_408() -> None:
    async with serving(short(body_timeout_s=0.1)) as running, running.connect() as (reader, writer):
        writer.write(request_bytes(BODY, length=10_000))
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer


async def test_a_head_that_does_not_come_drops_the_line() -> None:
    async with serving(short(head_timeout_s=1.0)) as running:
        for first in (b"", b"POST /v1/chat"):
            async with running.connect() as (reader, writer):
                writer.write(first)
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
        assert (await running.client.post(CHAT, json=ASKED)).status_code == 200


async def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    async with (
        serving(short(max_body_bytes=1000)) as running,
        running.connect() as (reader, writer),
    ):
        writer.write(request_bytes(b"", length=100_000_000))
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"max_body_bytes" in answer


async def test_100_mb_in_chunks_are_refused_and_not_kept() -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 1_000_000

    async with serving(short(max_body_bytes=1_000_000)) as running:
        refused = await running.client.post(CHAT, content=chunks())
        assert refused.status_code == 413
        assert (await running.client.post(CHAT, json=ASKED)).status_code == 200


async def test_an_answer_that_takes_too_long_is_a_408_or_an_event() -> None:
    models = slow()
    async with serving(short(request_timeout_s=1.0), models) as running:
        whole = await running.client.post(CHAT, json=ASKED)
        streamed = await running.client.post(CHAT, json={**ASKED, "stream": True, "seed": 1})
    assert whole.status_code == 408
    assert whole.json()["error"]["code"] == "deadline_exceeded"
    assert events_of(streamed.text)[-1]["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in streamed.text


async def test_a_silent_stream_is_kept_alive_by_comments() -> None:
    async with serving(short(heartbeat_s=0.05), slow(0.4)) as running:
        streamed = await running.client.post(CHAT, json={**ASKED, "stream": True})
    assert streamed.text.count(": waiting\n\n") >= 2
    assert streamed.text.endswith("data: [DONE]\n\n")


async def test_more_requests_than_allowed_are_refused_with_a_time_to_come_back() -> None:
    models = slow()
    async with serving(short(max_inflight=1), models) as running, running.connect() as (_, writer):
        writer.write(request_bytes(BODY))
        await until(lambda: models["small"].calls)
        refused = await running.client.post(CHAT, json=ASKED)
        writer.transport.abort()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1


async def test_keys_rates_and_models_of_a_tenant_are_kept() -> None:
    tenant = Tenant(
        name="acme",
        keys=(hashlib.sha256(b"sk-acme").hexdigest(),),
        rpm=3,
        models=("small",),
        aliases={"gpt-4o": "small"},
    )
    key = {"authorization": "Bearer sk-acme"}
    async with serving(settings_for_tests(tenants=(tenant,))) as running:
        nobody = await running.client.post(CHAT, json=ASKED)
        denied = await running.client.post(CHAT, json={**ASKED, "model": "large"}, headers=key)
        aliased = await running.client.post(CHAT, json={**ASKED, "model": "gpt-4o"}, headers=key)
        again = await running.client.post(CHAT, json=ASKED, headers=key)
        limited = await running.client.post(CHAT, json=ASKED, headers=key)
        listed = await running.client.get("/v1/models", headers=key)
    assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
    assert denied.status_code == 403
    assert denied.headers["x-ratelimit-remaining-requests"] == "2", "it counts all the same"
    assert aliased.headers["sluice-model"] == "small"
    assert aliased.headers["x-ratelimit-remaining-requests"] == "1"
    assert again.headers["sluice-origin"] == "exact"
    assert limited.status_code == 429
    assert int(limited.headers["retry-after"]) >= 1
    assert limited.headers["x-ratelimit-remaining-requests"] == "0"
    assert [card["id"] for card in listed.json()["data"]] == ["small"]


async def test_users_of_one_tenant_can_be_kept_apart() -> None:
    tenant = Tenant(name="t", cache_scope="user")
    async with serving(settings_for_tests(tenants=(tenant,))) as running:
        origins = []
        for user in ("ann", "ann", "bob", None, None):
            answer = await running.client.post(CHAT, json={**ASKED, "user": user})
            origins.append(answer.headers["sluice-origin"])
    assert origins == ["small", "exact", "small", "small", "small"]


async def test_a_route_header_picks_the_model() -> None:
    async with serving() as running:
        answer = await running.client.post(
            CHAT, json={**ASKED, "model": "auto"}, headers={"sluice-route": "small"}
        )
        auto = await running.client.post(CHAT, json={**ASKED, "model": "auto"})
    assert answer.headers["sluice-model"] == "small"
    assert auto.headers["sluice-model"] == "large"


async def test_several_prompts_are_answered_as_one() -> None:
    asked = {"model": "small", "prompt": ["a", "b"], "n": 2, "temperature": 0}
    async with serving() as running:
        whole = (await running.client.post("/v1/completions", json=asked)).json()
        streamed = await running.client.post("/v1/completions", json={**asked, "stream": True})
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert whole["choices"][2]["text"] == "You said: b "
    texts: dict[int, str] = {}
    for chunk in events_of(streamed.text)[:-1]:
        choice = chunk["choices"][0]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {choice["index"]: choice["text"] for choice in whole["choices"]}


async def test_one_connection_carries_many_requests_in_order() -> None:
    async with serving() as running, running.connect() as (reader, writer):
        asked = [
            request_bytes(
                json.dumps({**ASKED, "messages": [{"role": "user", "content": c}]}).encode()
            )
            for c in ("one", "two", "three")
        ]
        writer.write(b"".join(asked))
        for word in (b"one", b"two", b"three"):
            await reader.readuntil(b"\r\n\r\n")
            assert b"You said: " + word in await reader.readuntil(b"}}}")


async def test_the_dashboards_numbers_are_for_an_admin_and_its_files_hold_none() -> None:
    admin = Admin(keys=(hashlib.sha256(b"adm").hexdigest(),))
    key = {"authorization": "Bearer adm"}
    async with serving(settings_for_tests(admin=admin)) as running:
        await running.client.post(CHAT, json=ASKED)
        page = await running.client.get("/dashboard")
        script = await running.client.get("/dashboard/main.js")
        data = (await running.client.get("/dashboard/data", headers=key)).json()
        history = await running.client.get("/dashboard/history?span=1h", headers=key)
        refused = [
            (await running.client.get(f"/dashboard/{name}")).status_code
            for name in ("data", "history")
        ]
        nothing = await running.client.get("/dashboard/../settings.py")
    assert page.status_code == script.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(src|href)=\"(https?:)?//|<style|style=|onclick", page.text)
    assert data["requests"] == {"small": 1}
    assert data["recent"][0]["origin"] == "small"
    assert "hello there" not in json.dumps(data)
    assert sum(history.json()["requests"]) == 1
    assert refused == [401, 401]
    assert nothing.status_code == 404


async def test_head_says_of_pages_what_get_does_without_their_bodies() -> None:
    async with serving() as running:
        for path in ("/dashboard", "/dashboard/main.js", "/docs", "/docs/index.html"):
            got, head = await running.client.get(path), await running.client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
        assert (await running.client.head("/dashboard/none.js")).status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 401), ("evil.example:8080", 401), ("localhost:1", 200), ("[::1]:1", 200)],
)
async def test_a_name_that_was_pointed_at_this_machine_shows_no_dashboard(
    host: str, status: int
) -> None:
    async with serving() as running:
        reply = await running.client.get("/dashboard/data", headers={"host": host})
    assert reply.status_code == status


async def test_a_head_over_64_kib_that_comes_in_one_read_is_refused() -> None:
    async with serving() as running, running.connect() as (reader, writer):
        writer.write(request_bytes(b"{}", headers=f"x-long: {'a' * (65 << 10)}\r\n"))
        assert (await reader.read()).split()[1] == b"431"
        long = json.dumps({**ASKED, "messages": [{"role": "user", "content": "a" * 100_000}]})
        answer = await running.client.post(CHAT, content=long)
    assert answer.status_code == 200


async def test_options_on_a_hot_path_says_what_it_takes() -> None:
    async with serving() as running:
        reply = await running.client.options(CHAT)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert "use POST" in reply.json()["error"]["message"]


async def test_small_writes_of_a_stream_are_not_held_back() -> None:
    """TCP_NODELAY is set on what the server accepts."""
    async with serving() as running, running.connect() as (_, _writer):
        await until(lambda: running.server.server_state.connections)
        (connection,) = running.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_default_server_listens_on_loopback_only() -> None:
    assert Server().host == "127.0.0.1"


async def test_a_store_that_fails_is_told_by_readyz_and_costs_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_: object) -> None:
        raise StoreFault("disk full")

    async with serving() as running:
        well = await running.client.get("/readyz")
        monkeypatch.setattr(MemoryStore, "get", broken)
        ill = await running.client.get("/readyz")
        answer = await running.client.post(CHAT, json=ASKED)
    checked = ["budgets", "keys", "models", "settings", "store"]
    assert well.json() == {"status": "ready", "checked": checked}
    assert (ill.status_code, ill.json()["status"]) == (200, "degraded")
    assert "store" in ill.json()["problems"]
    assert answer.status_code == 200


async def test_health_may_be_asked_for_its_head() -> None:
    async with serving() as running:
        for path in ("/healthz", "/readyz"):
            assert (await running.client.head(path)).status_code == 200


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize(
    ("admin", "key", "status"),
    [
        (Admin(), None, 200),
        (Admin(keys=(sha("adm"),)), None, 401),
        (Admin(keys=(sha("adm"),)), "tenant's", 401),
        (Admin(keys=(sha("adm"),)), "adm", 200),
        (Admin(keys=(sha("adm"),), metrics_keys=(sha("read"),)), "read", 200),
        (Admin(keys=(sha("adm"),), open_metrics=True), None, 200),
    ],
)
async def test_metrics_which_name_every_tenant_are_not_for_tenants(
    admin: Admin, key: str | None, status: int
) -> None:
    tenant = Tenant(name="acme", keys=(sha("tenant's"),))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with serving(settings_for_tests(admin=admin, tenants=(tenant,))) as running:
        reply = await running.client.get("/metrics", headers=headers)
        admins = await running.client.get("/admin/tenants", headers=headers)
    assert reply.status_code == status
    if status == 401:
        assert "metrics_keys" in reply.json()["error"]["message"]
    assert admins.status_code == (200 if key == "adm" or not admin.keys else 401)


async def test_ids_of_requests_do_not_count() -> None:
    async with serving() as running:
        replies = [await running.client.post(CHAT, json=ASKED) for _ in range(4)]
    ids = [int(reply.headers["x-request-id"], 16) for reply in replies]
    steps = {later - earlier for earlier, later in itertools.pairwise(ids)}
    assert len(steps) == 3
    assert min(map(abs, steps)) > 1 << 16
