"""How `auto` chooses for a tenant: which file is found, what does not fit, and what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cascade.policy import write_policy
from cascade.routes.budget import Budget
from cascade.routes.cautious import Cautious
from cascade.routes.fixed import Fixed
from cascade.routes.latency import Latency
from cascade.routes.learned import Quality, Scorer
from gateway.backend import CannotLoad
from gateway.parts.policies import Policies, Surroundings, TenantPolicy, policy_path, weights_of
from gateway.settings import Cascade, Settings, Tenant
from tests.support.routing import CODE_CUT, CODE_GAINS, CODE_ROUTE

WEIGHTS = weights_of("s", "l")
AROUND = Surroundings(WEIGHTS)


def resolved(folder: Path, tenant: Tenant | None = None, **cascade: object) -> TenantPolicy:
    own = tenant or Tenant(name="t")
    settings = Settings(cascade=Cascade(folder=folder, **cascade), tenants=(own,))  # type: ignore[arg-type]
    return Policies(settings, AROUND).by_tenant[own.name]


def calibrated(folder: Path, route: Quality = CODE_ROUTE, weights: str = WEIGHTS) -> Path:
    path = policy_path(folder, "t")
    path.write_text(write_policy("t", weights, route))
    return path


def test_without_labels_auto_is_uncalibrated_and_says_so(tmp_path: Path) -> None:
    found = resolved(tmp_path)
    assert isinstance(found.route, Cautious)
    assert not found.calibrated
    assert found.note == "quality; uncalibrated"
    assert "run `sluice calibrate`" in found.why


def test_what_calibrate_wrote_is_found_by_the_tenants_name(tmp_path: Path) -> None:
    path = calibrated(tmp_path)
    found = resolved(tmp_path)
    assert found.calibrated
    assert found.source == str(path)
    assert found.note == "quality; max-loss=0.01; confidence=0.9; labels=900"
    assert found.key.startswith("quality/t/")
    assert resolved(tmp_path, Tenant(name="other")).key == "cautious"


def test_a_calibration_that_cannot_promise_is_told_as_none(tmp_path: Path) -> None:
    calibrated(tmp_path, replace(CODE_ROUTE, cut=replace(CODE_CUT, promised=False, labels=50)))
    found = resolved(tmp_path)
    assert not found.calibrated
    assert found.note == "quality; uncalibrated; labels=50"


@pytest.mark.parametrize("named", [True, False])
def test_a_policy_of_other_models_is_refused_if_named_and_passed_over_if_found(
    tmp_path: Path, named: bool
) -> None:
    path = calibrated(tmp_path, weights=weights_of("other", "l"))
    if named:
        with pytest.raises(CannotLoad, match=r"cascade\.policy_file: .* other models"):
            resolved(tmp_path, policy_file=path)
        with pytest.raises(CannotLoad, match=r"tenants\.cascade_policy_file: .* other models"):
            resolved(tmp_path, Tenant(name="t", cascade_policy_file=path))
        return
    found = resolved(tmp_path)
    assert isinstance(found.route, Cautious)
    assert "calibrated on other models" in found.passed_over[0]


def test_a_policy_that_promises_less_than_is_asked_does_not_fit(tmp_path: Path) -> None:
    calibrated(tmp_path)
    found = resolved(tmp_path, target=0.005)
    assert not found.calibrated
    assert "[cascade] asks for target 0.005" in found.passed_over[0]


def test_a_policy_of_another_embedder_does_not_fit(tmp_path: Path) -> None:
    block = replace(CODE_GAINS.blocks[0], name="embedding")
    model = replace(CODE_GAINS, blocks=(block,), embedder="e1")
    calibrated(tmp_path, replace(CODE_ROUTE, scorer=Scorer(model)))
    assert "needs the embedder e1" in resolved(tmp_path).passed_over[0]
    settings = Settings(cascade=Cascade(folder=tmp_path), tenants=(Tenant(name="t"),))
    assert Policies(settings, replace(AROUND, embedder=lambda: "e1")).by_tenant["t"].calibrated


def test_a_broken_file_is_told_and_stops_nobody_who_did_not_name_it(tmp_path: Path) -> None:
    path = policy_path(tmp_path, "t")
    path.write_text("{")
    assert "not a policy" in resolved(tmp_path).passed_over[0]
    with pytest.raises(CannotLoad, match="not a policy"):
        resolved(tmp_path, policy_file=path)
    with pytest.raises(CannotLoad, match="there is no file"):
        resolved(tmp_path, policy_file=tmp_path / "nowhere.json")


def test_a_tenant_overrides_the_policy_of_all(tmp_path: Path) -> None:
    found = resolved(tmp_path, Tenant(name="t", cascade_policy="fixed"))
    assert isinstance(found.route, Fixed)
    assert found.key == "", "an answer of the large model costs nothing in quality"


def test_one_model_in_both_places_is_always_that_one(tmp_path: Path) -> None:
    assert isinstance(resolved(tmp_path, small="m", large="m").route, Fixed)


def test_a_budget_needs_a_gain_model_and_is_the_tenants_own(tmp_path: Path) -> None:
    with pytest.raises(CannotLoad, match="un `sluice calibrate` first"):
        resolved(tmp_path, policy="budget", max_large_share=0.2)
    calibrated(tmp_path)
    found = resolved(tmp_path, policy="budget", max_large_share=0.2)
    assert isinstance(found.route, Budget)
    assert found.note == "budget; at most 20% of calls on large"
    own = resolved(
        tmp_path, Tenant(name="t", usd_per_day=3.0), policy="budget", max_large_share=0.2
    )
    assert own.note == "budget; at most $3 a day on large"


def test_latency_keeps_the_promise_of_the_policy_inside(tmp_path: Path) -> None:
    calibrated(tmp_path)
    found = resolved(tmp_path, policy="latency", ttft_objective_s=0.5)
    assert isinstance(found.route, Latency)
    assert found.note == "latency; ttft=0.5; max-loss=0.01; confidence=0.9; labels=900"
    assert found.key.startswith("latency/0.5/quality/t/")


def test_a_reload_reads_the_files_again_and_keeps_what_did_not_change(tmp_path: Path) -> None:
    calibrated(tmp_path)
    tenant = Tenant(name="t")
    settings = Settings(
        cascade=Cascade(folder=tmp_path, policy="budget", max_large_share=0.2), tenants=(tenant,)
    )
    policies = Policies(settings, AROUND)
    first, told = policies.by_tenant["t"], []
    policies.take([tenant], lambda text, **more: told.append(text))
    assert policies.by_tenant["t"].route is first.route, "the budget that it has spent stays spent"
    calibrated(tmp_path, replace(CODE_ROUTE, cut=replace(CODE_CUT, labels=901)))
    policies.take([tenant], lambda text, **more: told.append(text))
    assert policies.by_tenant["t"].route is not first.route
    assert policies.routes[first.key] is first.route, "a request in flight still finds its own"
    assert not told


def test_a_reload_that_names_a_file_that_does_not_fit_keeps_the_policy_in_force(
    tmp_path: Path,
) -> None:
    calibrated(tmp_path)
    tenant, told = Tenant(name="t"), []
    policies = Policies(Settings(cascade=Cascade(folder=tmp_path), tenants=(tenant,)), AROUND)
    wrong = Tenant(name="t", cascade_policy_file=tmp_path / "nowhere.json")
    new = Tenant(name="new", cascade_policy_file=tmp_path / "nowhere.json")
    policies.take([wrong, new], lambda text, **more: told.append(more["tenant"]))
    assert told == ["t", "new"]
    assert policies.by_tenant["t"].calibrated
    assert policies.keys["new"] == "cautious"
