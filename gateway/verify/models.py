"""[models.*] and [cascade]: which models there are, where, and how they stand in for each other."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from gateway.settings import Cascade, Model, Settings, Tenant
from gateway.verify.rules import AUTO, NAME, Finding, Key, is_http, shares

UPSTREAM_ONLY = (
    "base_url", "model", "api_key_env", "headers", "allow_private", "connect_timeout_s",
    "first_byte_timeout_s", "between_bytes_timeout_s", "max_tokens_field", "http2", "tools",
    "json", "vision", "logprobs",
)  # fmt: skip


def models(settings: Settings) -> Iterator[Finding]:
    for name, model in settings.models.items():
        if name == AUTO or not NAME.fullmatch(name):
            yield ("models", name), f"a model's name is letters, digits, . _ - and not {AUTO!r}"
        if model.price_in < 0 or model.price_out < 0:
            yield ("models", name), "prices must not be negative"
        if model.max_context is not None and model.max_context <= 0:
            yield ("models", name, "max_context"), "must be above 0"
        if model.kind == "openai":
            yield from _upstream(name, model)
        else:
            yield from _own(name, model)
        yield from _fallbacks(name, model, settings)
    for place in ("small", "large"):
        named = getattr(settings.cascade, place)
        if named not in settings.models:
            known = ", ".join(sorted(settings.models))
            yield ("cascade", place), f"no model is named {named!r}; there are: {known}"


def _own(name: str, model: Model) -> Iterator[Finding]:
    """A model of the engine: what belongs to a server elsewhere has no meaning."""
    if model.path is None:
        doc = "a Hugging Face directory (config.json, *.safetensors, tokenizer.json)"
        yield (
            ("models", name),
            f'path is missing: {doc}; or set kind = "openai" and base_url for a server elsewhere',
        )
    if model.kv_share <= 0:
        yield ("models", name, "kv_share"), f"must be above 0; got {model.kv_share}"
    plain = Model()
    for key in UPSTREAM_ONLY:
        if getattr(model, key) != getattr(plain, key):
            yield ("models", name, key), 'is for kind = "openai"; leave it out of an engine model'


def _upstream(name: str, model: Model) -> Iterator[Finding]:
    key: Key = ("models", name)
    for engine_only in ("path", "dtype", "kv_share"):
        if getattr(model, engine_only) != getattr(Model(), engine_only):
            yield (*key, engine_only), f'is for the engine; {name} has kind = "openai"'
    if model.base_url is None:
        yield key, "base_url is missing: where the API is, as https://host/v1"
    elif not is_http(model.base_url):
        yield (*key, "base_url"), f"must be http:// or https:// and a host; got {model.base_url!r}"
    for timeout in ("connect_timeout_s", "first_byte_timeout_s", "between_bytes_timeout_s"):
        if getattr(model, timeout) <= 0:
            yield (*key, timeout), f"must be above 0; got {getattr(model, timeout)}"
    if any(header.lower() == "authorization" for header in model.headers):
        yield (*key, "headers"), "name the key's environment variable in api_key_env instead"
    if model.http2 and find_spec("h2") is None:
        yield (*key, "http2"), "needs a package more: pip install h2"


def _fallbacks(name: str, model: Model, settings: Settings) -> Iterator[Finding]:
    others = sorted(set(settings.models) - {name})
    for other in model.fallbacks:
        if other not in others:
            yield (
                ("models", name, "fallbacks"),
                f"{other!r} is not another model; there are: {', '.join(others) or 'none'}",
            )


def cascade(settings: Settings) -> Iterator[Finding]:
    cascade = settings.cascade
    yield from shares(("cascade",), cascade)
    for name, least in (("target", 0.0), ("delta", 0.002)):
        if not least < getattr(cascade, name) < 1:
            yield ("cascade", name), f"must lie between {least:g} and 1"
    if cascade.hold_tokens < 0:
        yield ("cascade", "hold_tokens"), "must not be negative; 0 holds the whole answer"
    if cascade.whole_tokens < 0:
        yield ("cascade", "whole_tokens"), "must not be negative; 0 judges by hold_tokens only"
    if cascade.ttft_objective_s <= 0:
        yield ("cascade", "ttft_objective_s"), "must be above 0"
    for index, tenant in enumerate(settings.tenants):
        key: Key = ("tenants", index)
        yield from shares(key, tenant)
        if (tenant.cascade_policy or cascade.policy) == "budget" and not _has_one_limit(
            tenant, cascade
        ):
            yield (
                (*key, "cascade_policy") if tenant.cascade_policy else ("cascade", "policy"),
                f"budget needs one limit for tenant {tenant.name!r}: set max_large_share or "
                "usd_per_day",
            )


def _has_one_limit(tenant: Tenant, cascade: Cascade) -> bool:
    own = (tenant.max_large_share, tenant.usd_per_day)
    limits = (
        own
        if any(one is not None for one in own)
        else (cascade.max_large_share, cascade.usd_per_day)
    )
    return sum(one is not None for one in limits) == 1
