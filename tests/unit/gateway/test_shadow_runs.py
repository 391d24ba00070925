"""Shadow runs and feedback in an assembled gateway: what is gathered, where, and what it costs."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from pathlib import Path

from cascade.labels import Labelled, read_labels
from gateway.parts.policies import collected_path
from gateway.parts.shadow import MOST_BYTES, Labels, undecided
from gateway.settings import Cascade, Tenant
from tests.support.fake import FakeModel
from tests.support.routing import CODE_CUT, CODE_ROUTE, chat
from tests.support.serving import Running, serving, settings_for_tests
from tests.support.speakers import eventually


def ask(text: str) -> dict[str, object]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}]}


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

    kept = Labels(tmp_path, Told())  # type: ignore[arg-type]
    kept.keep("t", "{}")
    path = collected_path(tmp_path, "t")
    with path.open("r+b") as file:
        file.truncate(MOST_BYTES + 1)
    kept.keep("t", "{}")
    assert path.stat().st_size == MOST_BYTES + 1
    (tmp_path / "file").write_text("")
    Labels(tmp_path / "file", Told()).keep("t", "{}")  # type: ignore[arg-type]
    assert told == ["label not kept"]
