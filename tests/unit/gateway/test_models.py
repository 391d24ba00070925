"""[models.*]: models of the engine's and models elsewhere, and what is told when they cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cascade.ability import Abilities
from engine.contract import Call, Json, Start, Trail, UpstreamFailed
from gateway.backend import CannotLoad, PlainBackend
from gateway.catalog import ModelCard
from gateway.configure import BadSettings, Loaded, load
from gateway.parts.cascade import unbounded_in
from gateway.parts.models import (
    WithFallbacks,
    abilities_of,
    has_own_process,
    load_models,
    permitted,
)
from gateway.parts.upstreams import card_of, upstream_of
from gateway.settings import Cascade, Engine, Model, Settings, Tenant
from gateway.tenants.roster import Roster
from tests.support.fake import FakeModel
from tests.support.routing import chat
from tests.support.serving import serving, settings_for_tests

FAR = Model(kind="openai", base_url="https://api.example.com/v1")


def problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "sluice.toml"
    path.write_text(text)
    with pytest.raises(BadSettings) as raised:
        load(path)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[models.far]\nkind = "openai"\n', "models.far: base_url is missing"),
        (
            '[models.far]\nkind = "openai"\nbase_url = "api"\n',
            ":3: models.far.base_url: must be ht",
        ),
        (
            '[models.far]\npath = "/m"\nbase_url = "http://x"\n',
            ":3: models.far.base_url: is for kind",
        ),
        ("[models.far]\nprice_in = 1.0\n", "models.far: path is missing"),
        (
            '[models.far]\nkind = "openai"\nbase_url = "http://x"\nconnect_timeout_s = 0\n',
            ":4: models.far.connect_timeout_s: must be above 0",
        ),
        (
            '[models.far]\nkind = "openai"\nbase_url = "http://x"\nfallbacks = ["far"]\n',
            "models.far.fallbacks: 'far' is not another model",
        ),
        (
            '[models.far]\nkind = "openai"\nbase_url = "http://x"\n'
            '[models.far.headers]\nAuthorization = "x"\n',
            "models.far.headers: name the key's environment variable in api_key_env",
        ),
        (
            '[models.far]\nkind = "openai"\npath = "/m"\nbase_url = "http://x"\n',
            "is for the engine",
        ),
    ],
)
def test_a_model_that_cannot_be_is_told_with_its_line_and_the_remedy(
    tmp_path: Path, text: str, told: str
) -> None:
    text += '[cascade]\nsmall = "far"\nlarge = "far"\n'
    assert any(told in problem for problem in problems(tmp_path, text))


def test_a_bundled_name_may_be_given_to_a_server_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "sluice.toml"
    path.write_text(
        "[models.small]\n[models.large]\n"
        'kind = "openai"\nbase_url = "https://api.example.com/v1"\nmodel = "gpt"\n'
    )
    models = load(path).settings.models
    assert models["small"].path is not None
    assert models["large"].path is None


def test_a_key_that_is_not_in_the_environment_stops_the_start() -> None:
    model = Model(kind="openai", base_url="https://x", api_key_env="FAR_KEY")
    with pytest.raises(
        CannotLoad, match=r"models\.far: the environment variable FAR_KEY is not set"
    ):
        upstream_of("far", model, {})
    assert upstream_of("far", model, {"FAR_KEY": "sk-1"}).api_key == "sk-1"
    headed = Model(kind="openai", base_url="https://x", headers={"X-Org": "o", "X-Key": "env:KEY"})
    assert upstream_of("far", headed, {"KEY": "s"}).headers == (("x-org", "o"), ("x-key", "s"))
    with pytest.raises(CannotLoad, match="KEY is not set"):
        upstream_of("far", headed, {})


def test_a_private_address_stops_the_start_unless_it_is_allowed() -> None:
    local = Model(kind="openai", base_url="http://127.0.0.1:9/v1")
    settings = Settings(models={"far": local})
    with pytest.raises(CannotLoad, match="allow_private = true"):
        load_models(settings, {}, None, lambda _: None)  # type: ignore[arg-type]


def test_remote_models_alone_need_no_engine() -> None:
    loaded = load_models(Settings(models={"far": FAR}), {}, None, lambda _: None)  # type: ignore[arg-type]
    assert list(loaded.answerers) == ["far"]
    assert loaded.states() == {}
    assert loaded.problem() is None


def test_what_a_remote_model_can_comes_from_the_settings() -> None:
    assert abilities_of(card_of("far", FAR)) == Abilities(extra=True)
    narrow = Model(kind="openai", base_url="https://x", tools=False, json=False, vision=True,
                   logprobs=False, max_context=9)  # fmt: skip
    expected = Abilities(9, tools=False, json=False, vision=True, logprobs=False, extra=True)
    assert abilities_of(card_of("far", narrow)) == expected


def test_a_fingerprint_is_of_the_place_and_the_name_there() -> None:
    other = Model(kind="openai", base_url="https://api.example.com/v1", model="b")
    prints = {card_of(name, model).fingerprint for name, model in (("a", FAR), ("c", other))}
    assert len(prints) == 2
    assert card_of("b", FAR).fingerprint == card_of("x", other).fingerprint


def test_unbounded_are_names_under_which_someone_of_unknown_context_may_answer() -> None:
    narrow = Model(kind="openai", base_url="https://x", max_context=9)
    models = {"far": FAR, "narrow": narrow, "saved": replace(narrow, fallbacks=("narrow", "far"))}
    cards = {name: card_of(name, model) for name, model in models.items()}

    def unbounded(small: str, large: str) -> frozenset[str]:
        cascade = Cascade(small=small, large=large)
        return unbounded_in(Settings(models=models, cascade=cascade), cards)

    assert unbounded("narrow", "narrow") == {"far", "saved"}
    assert unbounded("narrow", "saved") == {"far", "saved", "auto"}
    assert not upstream_of("far", FAR, {}).bounded
    assert upstream_of("narrow", narrow, {}).bounded


async def _origin(answerer: Any, call: Call, tenant: str = "t") -> str:
    events = [event async for event in answerer(call, Trail("r", tenant=tenant))]
    assert isinstance(events[0], Start)
    return events[0].origin


async def test_a_fallback_answers_for_a_model_that_fails_unless_it_cannot() -> None:
    broken = FakeModel(name="far", error=UpstreamFailed("gone"))
    plain, able = FakeModel(name="plain"), FakeModel(name="able")
    models = {"far": Model(kind="openai", base_url="https://x", fallbacks=("plain", "able"))}
    settings = Settings(models={**models, "plain": FAR, "able": FAR})
    cards = {
        "far": ModelCard("far", "1"),
        "plain": ModelCard("plain", "2", tools=False),
        "able": ModelCard("able", "3"),
    }
    backend = PlainBackend({"far": broken, "plain": plain, "able": able}, cards)
    wrapped = WithFallbacks(settings, backend, lambda *_: True).answerers
    assert await _origin(wrapped["far"], chat("Hi")) == "plain"
    assert await _origin(wrapped["far"], chat("Hi", tools=Json("[]"))) == "able"
    assert wrapped["plain"] is plain


async def test_a_fallback_that_the_tenant_may_not_use_is_skipped() -> None:
    broken = FakeModel(name="far", error=UpstreamFailed("gone"))
    dear, other = FakeModel(name="dear"), FakeModel(name="other")
    far = Model(kind="openai", base_url="https://x", fallbacks=("dear", "other"))
    settings = Settings(models={"far": far, "dear": FAR, "other": FAR})
    roster = Roster([Tenant("poor", models=("far",)), Tenant("some", models=("far", "other"))])
    answerers = {"far": broken, "dear": dear, "other": other}
    cards = {name: ModelCard(name, name) for name in answerers}
    may = permitted(roster, Cascade(small="far", large="far"))
    wrapped = WithFallbacks(settings, PlainBackend(answerers, cards), may).answerers
    assert await _origin(wrapped["far"], chat("Hi"), "some") == "other"
    with pytest.raises(UpstreamFailed, match="gone"):
        await _origin(wrapped["far"], chat("Hi"), "poor")
    assert not dear.calls


async def test_a_running_gateway_asks_no_fallback_that_a_reload_has_forbidden(
    tmp_path: Path,
) -> None:
    base = settings_for_tests()
    far = Model(kind="openai", base_url="https://x", fallbacks=("large",))
    tenant = Tenant(name="default", models=("far", "large"))
    settings = replace(base, models={**base.models, "far": far}, tenants=(tenant,))
    fakes = {name: FakeModel(name=name) for name in ("small", "large")}
    fakes["far"] = FakeModel(name="far", error=UpstreamFailed("gone"))
    asked = {"model": "far", "messages": [{"role": "user", "content": "x"}], "temperature": 1}
    async with serving(settings, fakes) as running:
        reply = await running.client.post("/v1/chat/completions", json=asked)
        assert (reply.status_code, reply.headers["sluice-model"]) == (200, "large")
        narrow = replace(settings, tenants=(replace(tenant, models=("far",)),))
        running.system.live.take(Loaded(narrow))
        asked["seed"] = 7  # another request, so that no cache answers
        reply = await running.client.post("/v1/chat/completions", json=asked)
        assert reply.status_code == 502
    assert len(fakes["large"].calls) == 1


def test_who_may_ask_auto_may_be_answered_by_what_auto_asks() -> None:
    roster = Roster([Tenant("t", models=("auto",)), Tenant("all")])
    may = permitted(roster, Cascade(small="little", large="big"))
    assert [may("t", name) for name in ("little", "big", "other")] == [True, True, False]
    assert may("all", "other")
    assert may("nobody of ours", "other")


@pytest.mark.parametrize(
    ("engine", "devices", "own"),
    [
        (Engine(), [], False),
        (Engine(), ["nvidiactl", "nvidia-uvm"], False),
        (Engine(), ["nvidiactl", "nvidia0"], True),
        (Engine(), ["dxg"], True),
        (Engine(device="cpu"), ["nvidia0"], False),
        (Engine(device="cuda:1"), [], True),
        (Engine(process="shared"), ["nvidia0"], False),
        (Engine(process="own", device="cpu"), [], True),
    ],
)
def test_the_engine_has_a_process_of_its_own_where_a_gpu_may_be_used(
    tmp_path: Path, engine: Engine, devices: list[str], own: bool
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    assert has_own_process(engine, tmp_path) is own
