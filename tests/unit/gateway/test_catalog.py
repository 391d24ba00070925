from __future__ import annotations

import pytest

from engine.contract import BadCall, Denied, Json, UnknownModel
from gateway.catalog import LONGEST_UNKNOWN, Catalog, ModelCard, Place, is_alone, scope_of
from gateway.engine_backend import answers_as
from gateway.settings import Tenant

LARGE = ModelCard("large", "FL", 100)
CATALOG = Catalog({"small": ModelCard("small", "FS", 50), "large": LARGE}, auto=LARGE)
ANYONE = Tenant(name="t")


def place(model: str, tenant: Tenant = ANYONE, **more: object) -> Place:
    extra = more.get("extra")
    return CATALOG.place(model, more.get("max_tokens"), extra, tenant, "s")  # type: ignore[arg-type]


def test_a_model_brings_its_fingerprint_and_auto_that_of_the_large_one() -> None:
    assert place("small") == Place("small", "s", "FS", None)
    assert place("auto") == Place("auto", "s", "FL", None)


def test_an_unknown_model_is_told_which_there_are() -> None:
    with pytest.raises(UnknownModel, match="auto, small, large"):
        place("gpt-4o")


def test_an_alias_stands_for_its_model() -> None:
    assert place("gpt-4o", Tenant(name="t", aliases={"gpt-4o": "auto"})).model == "auto"


def test_a_tenants_default_route_is_what_auto_means_unless_the_caller_chose_one() -> None:
    tenant = Tenant(name="t", aliases={"gpt-4o": "auto"}, default_route="small")
    assert place("auto", tenant).model == place("gpt-4o", tenant).model == "small"
    assert place("large", tenant).model == "large"
    assert CATALOG.place("auto", None, None, tenant, "s", routed=True).model == "auto"


def test_a_tenant_may_use_only_its_models() -> None:
    tenant = Tenant(name="t", models=("small",))
    assert [card.name for card in CATALOG.visible_to(tenant)] == ["small"]
    assert place("small", tenant).model == "small"
    with pytest.raises(Denied, match="it may use: small"):
        place("large", tenant)


def test_a_longer_answer_is_clamped_for_the_tenant_and_refused_beyond_the_model() -> None:
    tenant = Tenant(name="t", max_tokens=10)
    assert place("small", tenant).max_tokens == 10
    assert place("small", tenant, max_tokens=3).max_tokens == 3
    assert place("small", tenant, max_tokens=30).max_tokens == 10
    assert place("small", max_tokens=50).max_tokens == 50
    with pytest.raises(BadCall, match="more than the whole context"):
        place("small", max_tokens=51)


def test_an_answer_that_a_budget_pays_for_ends_where_it_was_reserved_to_end() -> None:
    catalog = Catalog({"here": LARGE, "far": ModelCard("far", "f")}, unbounded=frozenset({"far"}))
    rich = Tenant(name="t", budget_usd_day=1.0)

    def longest(model: str, tenant: Tenant, max_tokens: int | None = None) -> int | None:
        return catalog.place(model, max_tokens, None, tenant, "s").longest

    assert longest("far", rich) == LONGEST_UNKNOWN
    assert longest("far", Tenant(name="t", budget_usd_month=1.0)) == LONGEST_UNKNOWN
    assert longest("far", ANYONE) is None
    assert longest("here", rich) is None
    assert longest("far", rich, max_tokens=5) is None
    assert longest("far", Tenant(name="t", budget_usd_day=1.0, max_tokens=9)) is None


def test_an_unknown_parameter_is_refused_by_a_model_that_cannot_honour_it() -> None:
    with pytest.raises(BadCall, match="does not know reasoning_effort") as raised:
        place("small", extra=Json('{"reasoning_effort":"low"}'))
    assert raised.value.param == "reasoning_effort"
    remote = Catalog({"r": ModelCard("r", "f", takes_extra=True)})
    assert remote.place("r", None, Json('{"x":1}'), ANYONE, "s").model == "r"


def test_scopes_of_different_kinds_never_meet() -> None:
    scopes = [
        scope_of(Tenant(name="a"), "u", "r1"),
        scope_of(Tenant(name="a", cache_scope="user"), "u", "r1"),
        scope_of(Tenant(name="a", cache_scope="user"), "v", "r1"),
        scope_of(Tenant(name="b", cache_scope="user"), "u", "r1"),
        scope_of(Tenant(name="a", cache_scope="group:a"), "u", "r1"),
        scope_of(Tenant(name="a", cache_scope="public"), "u", "r1"),
    ]
    assert len(set(scopes)) == len(scopes)
    assert scope_of(Tenant(name="a"), "u", "r1") == scope_of(Tenant(name="a"), "v", "r1")


def test_who_keeps_users_apart_and_names_none_is_alone_with_each_request() -> None:
    apart = Tenant(name="a", cache_scope="user")
    assert is_alone(scope_of(apart, None, "r1"))
    assert scope_of(apart, "", "r1") != scope_of(apart, "", "r2")
    assert not is_alone(scope_of(apart, "alone:r1", "r1"))


def test_another_precision_or_context_is_another_fingerprint() -> None:
    prints = {answers_as(*of) for of in (("w", "auto", 9), ("w", "float32", 9), ("w", "auto", 8))}
    assert len({*prints, answers_as("v", "auto", 9)}) == 4
    assert all(len(one) == 32 for one in prints)
