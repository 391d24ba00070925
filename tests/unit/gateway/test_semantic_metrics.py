"""Namespaces in /metrics: summed by tenant, so that nobody's users or prompts become labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cache.entry import SpaceState
from cache.verify_state import State
from gateway.catalog import ModelCard
from gateway.observe.ledger import Ledger
from gateway.observe.metrics import Metrics
from gateway.observe.rollup import Prices, RollUp
from gateway.observe.semantic_metrics import SemanticNow, tenant_of

CARD = ModelCard("small", "", 1, 0.0, 0.0, 0)
OPEN = State(
    max_error=0.02,
    requests=1000,
    served=300,
    audited=20,
    labels=700,
    threshold=0.1,
    allowed_wrong=20.0,
    expected_wrong=6.0,
    proven_at_most=14.0,
    proven_at_least=1.0,
    alarms=0,
    reason="",
)
SPACE = SpaceState("n1", "tenant:acme", "small", 40, 30, 9000, {"equal": 5, "judge": 1}, OPEN)


def read(*spaces: SpaceState) -> dict[tuple[str, ...], float]:
    rollup = RollUp(Ledger(), Prices([CARD], CARD))
    text = Metrics(rollup, dict, lambda: 0, [SemanticNow(lambda: spaces)]).render().decode()
    return {
        (sample.name, sample.labels.pop("tenant"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith("sluice_semantic")
    }


def test_a_tenants_namespaces_and_users_are_one_sum() -> None:
    resting = replace(
        OPEN, requests=500, served=0, allowed_wrong=10.0, expected_wrong=0.0, reason="warming up"
    )
    told = read(SPACE, replace(SPACE, scope="user:acme/ann", promise=resting))
    assert told["sluice_semantic_entries", "acme"] == 80
    assert told["sluice_semantic_labels", "acme", "equal"] == 10
    assert told["sluice_semantic_namespaces", "acme", "open"] == 1
    assert told["sluice_semantic_namespaces", "acme", "closed"] == 1
    assert told["sluice_semantic_requests", "acme", "asked"] == 1500
    assert told["sluice_semantic_requests", "acme", "explored"] == 40
    assert told["sluice_semantic_error_budget", "acme", "allowed"] == pytest.approx(30)
    assert told["sluice_semantic_error_budget", "acme", "spent"] == pytest.approx(6)
    assert told["sluice_semantic_error_budget", "acme", "proven"] == pytest.approx(28)
    assert not any("ann" in name for key in told for name in key)


def test_a_policy_without_a_promise_tells_what_is_kept_alone() -> None:
    told = read(replace(SPACE, promise=None))
    assert told["sluice_semantic_entries", "acme"] == 40
    assert not any(key[0] == "sluice_semantic_error_budget" for key in told)


def test_a_shared_scope_has_its_own_name() -> None:
    scopes = ("tenant:a", "user:a/b/c", "group:club", "public")
    assert [tenant_of(scope) for scope in scopes] == ["a", "a", "group:club", "public"]
