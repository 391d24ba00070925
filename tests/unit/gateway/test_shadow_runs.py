"""Shadow runs and feedback in an assembled gateway: what is gathered, where, and what it costs."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from cascade.labels import Labelled, read_labels
from gateway.parts.policies import collected_path
from gateway.parts.shadow import MOST_BYTES, LabelFiles, undecided
from gateway.settings import Cascade, ExactCache, Tenant
from tests.support.embedders import quiet_log
from tests.support.fake import FakeModel
from tests.support.redis_server import running_redis
from tests.support.routing import CODE_CUT, CODE_ROUTE, chat
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import eventually


def ask(text: str, **more: object) -> dict[str, object]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}


async def erase(running: Running, **named: object) -> int:
    reply = await running.client.post("/admin/caches/erase", json=named)
    told: int = reply.json()["labels"]
    return told


def rows_of(path: Path) -> list[Labelled]:
    return read_labels(path.read_text().splitlines()) if path.exists() else []


async def gathered(path: Path, count: int) -> list[Labelled]:
    await eventually(lambda: len(rows_of(path)) >= count)
    return rows_of(path)


async def shadow_of(running: Running) -> dict[str, int]:
    told: dict[str, int] = (await running.client.get("/admin/cascade")).json()["shadow"]
    return told


async def is_told(running: Running, state: dict[str, int]) -> bool:
    return await shadow_of(running) == state


async def test_autos_requests_become_labels_of_their_tenant_and_waste(tmp_path: Path) -> None:
    settings = settings_for_tests(cascade=Cascade(folder=tmp_path, shadow_share=1.0))
    async with serving(settings, prices={"small": (0.1, 0.1), "large": (1.0, 1.0)}) as running:
        await running.client.post("/v1/chat/completions", json=ask("Hello there"))
        (row,) = await gathered(collected_path(tmp_path, "default"), 1)
        assert row.call.messages[0].text == "Hello there"
        assert (row.small, row.large) == (1.0, 1.0)
        assert row.answer is not None
        assert row.answer.logprobs
        done = {"waiting": 0, "labels": 1, "dropped": 0}
        await eventually(lambda: is_told(running, done))
        lines = (await running.client.get("/admin/decisions")).json()["decisions"]
        (booked,) = [line for line in lines if line["origin"] == "shadow"]
        assert [one["model"] for one in booked["wasted"]] == ["small", "large"]
        metrics = (await running.client.get("/metrics")).text
        assert 'sluice_requests_total{model="small",origin="shadow"' in metrics
    mode = collected_path(tmp_path, "default").stat().st_mode
    assert not mode & (stat.S_IRWXG | stat.S_IRWXO), "prompts are the operator's alone"


async def test_a_tenant_may_keep_out_of_it(tmp_path: Path) -> None:
    quiet = Tenant(name="default", shadow_share=0.0)
    settings = settings_for_tests(
        cascade=Cascade(folder=tmp_path, shadow_share=1.0), tenants=(quiet,)
    )
    small = FakeModel(name="small")
    async with serving(settings, {"small": small, "large": FakeModel(name="large")}) as running:
        await running.client.post("/v1/chat/completions", json=ask("Hello"))
        await asyncio.sleep(0.1)
        assert await shadow_of(running) == {"waiting": 0, "labels": 0, "dropped": 0}
    assert not rows_of(collected_path(tmp_path, "default"))


def test_only_what_a_nearby_cut_could_keep_is_undecided() -> None:
    near = undecided(
        {"q": CODE_ROUTE, "none": replace(CODE_ROUTE, cut=replace(CODE_CUT, promised=False))}
    )
    code, plain = (replace(chat(text), policy="q") for text in ("```x```", "Hello"))
    assert not near(code)
    assert near(plain)
    assert near(replace(code, policy="none"))
    assert near(replace(code, policy="unknown"))


async def test_a_full_file_takes_no_more_and_a_folder_that_cannot_be_is_told(
    tmp_path: Path,
) -> None:
    told: list[str] = []

    class Told:
        def warning(self, what: str, **more: object) -> None:
            told.append(what)

    kept = LabelFiles(tmp_path, Told())  # type: ignore[arg-type]
    kept.keep("t", "{}")
    path = collected_path(tmp_path, "t")
    with path.open("r+b") as file:
        file.truncate(MOST_BYTES + 1)
    kept.keep("t", "{}")
    assert path.stat().st_size == MOST_BYTES + 1
    (tmp_path / "file").write_text("")
    LabelFiles(tmp_path / "file", Told()).keep("t", "{}")  # type: ignore[arg-type]
    assert told == ["label not kept"]


async def test_what_is_erased_is_no_label_either(tmp_path: Path) -> None:
    settings = settings_for_tests(cascade=Cascade(folder=tmp_path, shadow_share=1.0))
    path = collected_path(tmp_path, "default")
    async with serving(settings) as running:
        for user in ("ann", "bob"):
            tagged = {"sluice-tags": f"of-{user}"}
            body = ask(f"I am {user}", user=user)
            await running.client.post("/v1/chat/completions", json=body, headers=tagged)
        await gathered(path, 2)
        with path.open("a") as file:
            file.write('{"by": "hand"}\n')
        assert await erase(running, tag="of-nobody") == 0
        assert await erase(running, tenant="default", user="ann", layer="exact") == 0
        assert await erase(running, tenant="default", user="ann") == 1
        left = path.read_text().splitlines()
        assert ("I am bob" in left[0], left[1:]) == (True, ['{"by": "hand"}'])
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        assert await erase(running, tag="of-bob") == 1
        await running.client.post("/v1/chat/completions", json=ask("I am back"))
        await eventually(lambda: "I am back" in path.read_text())


async def test_a_gateway_that_shares_a_redis_erases_its_own_labels(tmp_path: Path) -> None:
    with running_redis(7, tmp_path) as redis:
        folders = [tmp_path / "one", tmp_path / "other"]
        one, other = (
            settings_for_tests(
                cascade=Cascade(folder=folder, shadow_share=1.0), exact=ExactCache(store=redis.url)
            )
            for folder in folders
        )
        async with serving(one) as asked, serving(other) as running:
            body = ask("I am ann", user="ann")
            await running.client.post("/v1/chat/completions", json=body)
            path = collected_path(folders[1], "default")
            await gathered(path, 1)
            assert await erase(asked, tenant="default", user="ann") == 0
            await eventually(lambda: "ann" not in path.read_text())


async def test_rows_that_come_while_an_erasure_fails_are_kept(tmp_path: Path) -> None:
    files = LabelFiles(tmp_path, quiet_log())
    collected_path(tmp_path, "broken").mkdir()
    erasing = asyncio.create_task(files.erase(lambda _scope, _labels: True))
    await asyncio.sleep(0)
    files.keep("t", "{}")
    with pytest.raises(OSError, match="broken"):
        await erasing
    assert collected_path(tmp_path, "t").read_text() == "{}\n"


async def test_rows_that_come_while_files_are_written_anew_are_kept(tmp_path: Path) -> None:
    files = LabelFiles(tmp_path, quiet_log())
    row = '{"scope": "%s", "labels": []}'
    files.keep("t", row % "mine")
    erasing = asyncio.create_task(files.erase(lambda scope, _: scope == "mine"))
    await asyncio.sleep(0)
    files.keep("t", row % "yours")
    assert await erasing == 1
    assert collected_path(tmp_path, "t").read_text() == row % "yours" + "\n"
