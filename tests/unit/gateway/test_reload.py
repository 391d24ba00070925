"""Settings that are read again while answers are given."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import pytest

from gateway.configure import load
from gateway.live import Live
from gateway.observe.logs import LineWriter, build_log
from gateway.reload import Reloader
from gateway.settings import Tenant
from tests.support.fake import FakeModel
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import eventually

HASH = hashlib.sha256(b"acme's key").hexdigest()
ACME = f'[[tenants]]\nname = "acme"\nkeys = ["{HASH}"]\nrpm = %d\n'
CHAT = "/v1/chat/completions"
OPEN = '[[tenants]]\nname = "open"\n'


class Setup:
    def __init__(self, folder: Path, text: str) -> None:
        self.file = folder / "sluice.toml"
        self.file.write_text(text)
        loaded = load(self.file)
        self.live = Live(loaded)
        self.told: list[tuple[Tenant, ...]] = []
        self.live.on_tenants(self.told.append)
        self.written = BytesIO()
        self.writer = LineWriter(self.written, every_s=60)
        log = build_log(self.writer, "info", as_json=True)
        self.reloader = Reloader(self.live, loaded, log)

    def lines(self) -> list[dict[str, object]]:
        self.writer.close()
        return [json.loads(line) for line in self.written.getvalue().splitlines()]


async def test_a_file_is_taken_on_once_it_has_changed_and_is_still(tmp_path: Path) -> None:
    one = Setup(tmp_path, ACME % 5)
    await one.reloader.look()
    assert not one.told
    one.file.write_text(ACME % 700)
    await one.reloader.look()
    assert not one.told, "it may still be being written"
    await one.reloader.look()
    await one.reloader.look()
    [tenants] = one.told
    assert tenants[0].rpm == 700
    assert one.live.sources["tenants[0].rpm"] == "sluice.toml:4"


async def test_a_bad_file_is_refused_with_every_reason_and_the_old_one_holds(
    tmp_path: Path,
) -> None:
    one = Setup(tmp_path, ACME % 5)
    one.file.write_text((ACME % -1) + "rmp = 3\n")
    await one.reloader.read()
    assert one.live.problem is not None
    assert "sluice.toml:5: tenants[0].rmp: unknown key; did you mean 'rpm'?" in one.live.problem
    assert await one.live.said_problem() is not None
    one.file.write_text(ACME % 0)
    await one.reloader.read()
    assert "must be above 0" in one.live.problem
    assert not one.told
    one.file.write_text(ACME % 6)
    await one.reloader.read()
    assert one.live.problem is None
    assert one.told[0][0].rpm == 6
    refused = [line for line in one.lines() if "not taken on" in str(line["event"])]
    assert len(refused) == 2


async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    one = Setup(tmp_path, ACME % 5)
    one.file.unlink()
    await one.reloader.look()
    await one.reloader.look()
    assert not one.told
    assert "No such file" in (one.live.problem or "")


async def test_what_waits_for_a_restart_is_named(tmp_path: Path) -> None:
    one = Setup(tmp_path, ACME % 5)
    one.file.write_text("[server]\nport = 9\n" + ACME % 8)
    await one.reloader.read()
    assert one.told[0][0].rpm == 8
    assert one.live.settings.server.port != 9
    [waits] = [line for line in one.lines() if "restart" in str(line["event"])]
    assert waits["keys"] == ["server.port"]


async def test_tenants_that_would_be_unsafe_with_what_runs_are_refused(tmp_path: Path) -> None:
    """The new file closes the address and opens the tenant; only the second would come about."""
    one = Setup(tmp_path, '[server]\nhost = "0.0.0.0"\n' + ACME % 5)
    one.file.write_text('[server]\nhost = "127.0.0.1"\n' + OPEN)
    await one.reloader.read()
    assert not one.told
    assert "would let anyone in" in (one.live.problem or "")
    assert "a restart may take it on" in (one.live.problem or "")


ADMIN = f'[admin]\nkeys = ["{HASH}"]\n'


@pytest.mark.parametrize(
    ("now", "then", "said"),
    [
        (ACME % 5, "", "'default' would need none"),
        (ACME % 5, '[[tenants]]\nname = "acme"\n', "'acme' would need none"),
        (ACME % 5 + OPEN, OPEN, "nobody would be asked"),
        (ADMIN + ACME % 5, ACME % 5, "none is left"),
    ],
)
async def test_a_reload_does_away_with_no_key_that_was_asked_for(
    tmp_path: Path, now: str, then: str, said: str
) -> None:
    one = Setup(tmp_path, now)
    one.file.write_text(then)
    await one.reloader.read()
    assert not one.told
    assert said in (one.live.problem or "")


async def test_a_tenant_without_a_key_may_stay_and_others_may_come_and_go(tmp_path: Path) -> None:
    one = Setup(tmp_path, ACME % 5 + OPEN)
    other = ACME.replace("acme", "other").replace(HASH, "1" * 64) % 5
    one.file.write_text(other + OPEN)
    await one.reloader.read()
    [tenants] = one.told
    assert [tenant.name for tenant in tenants] == ["other", "open"]


@pytest.mark.parametrize("tenant", ['models = ["third"]', 'aliases = {a = "third"}'])
async def test_a_tenant_may_not_name_a_model_that_is_not_loaded_yet(
    tmp_path: Path, tenant: str
) -> None:
    one = Setup(tmp_path, ACME % 5)
    third = '[models.small]\n[models.large]\n[models.third]\npath = "x"\n'
    one.file.write_text(f"{third}{ACME % 5}{tenant}\n")
    await one.reloader.read()
    assert not one.told
    assert "no model is named 'third'" in (one.live.problem or "")


@asynccontextmanager
async def served(folder: Path, models: dict[str, FakeModel]) -> AsyncIterator[Running]:
    file = folder / "sluice.toml"
    file.write_text(OPEN)
    loaded = load(file)
    base = settings_for_tests(tenants=loaded.settings.tenants)
    async with serving(base, models, loaded=loaded) as running:
        yield running


async def test_what_waits_for_a_restart_is_told_and_makes_nobody_unready(tmp_path: Path) -> None:
    fake = FakeModel()
    async with served(tmp_path, {"small": fake, "large": fake}) as running:
        plain = (await running.client.get("/readyz")).json()
        assert "warnings" not in plain
        (tmp_path / "sluice.toml").write_text("[server]\nport = 9\n" + OPEN)
        await running.system.reloader.read()
        ready = await running.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert "waiting for a restart" in ready.json()["warnings"]["settings"]
        known = (await running.client.get("/admin/tenants")).json()
        assert "server.port" in known["waiting"]
        assert known["problem"] is None


async def test_no_request_is_dropped_while_tenants_change_under_it(tmp_path: Path) -> None:
    """The tenant of a stream in flight is taken away; the stream goes on to its end."""
    gate = asyncio.Event()
    slow = FakeModel(lambda _: [f"w{i} " for i in range(20)], gate=gate)
    async with served(tmp_path, {"small": slow, "large": slow}) as running:
        body = {"model": "small", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with running.client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.aiter_lines()
            await anext(lines)
            (tmp_path / "sluice.toml").write_text(ACME % 5)
            running.system.reloader.ask()
            await eventually(lambda: running.system.live.settings.tenants[0].name == "acme")
            refused = await running.client.post("/v1/chat/completions", json=body)
            gate.set()
            rest = [line async for line in lines if line]
        assert refused.status_code == 401
        assert rest[-1] == "data: [DONE]"
        assert any("w19" in line for line in rest)
        headers = {"authorization": "Bearer acme's key"}
        let_in = await running.client.post("/v1/chat/completions", json=body, headers=headers)
        assert let_in.headers["x-ratelimit-limit-requests"] == "5"


async def test_a_tenants_share_reaches_whoever_schedules_and_follows_a_reload(
    tmp_path: Path,
) -> None:
    model = FakeModel()
    async with served(tmp_path, {"small": model, "large": model}) as running:
        body = {"model": "small", "messages": [{"role": "user", "content": "x"}]}
        for share, text in ((1.0, OPEN), (3.5, OPEN + "share = 3.5\n")):
            (tmp_path / "sluice.toml").write_text(text)
            await running.system.reloader.read()
            asked = {**body, "max_tokens": int(share * 2)}
            assert (await running.client.post(CHAT, json=asked)).status_code == 200
            assert model.trails[-1].share == share
