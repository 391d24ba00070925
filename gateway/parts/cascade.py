"""[cascade] → the layer that answers `auto`, and what the rest of the gateway has to know of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cascade.cascade import Cascade, Embed, Team
from cascade.price import Price
from cascade.routes.fixed import fixed
from cascade.ttft import FirstTokens
from engine.contract import Answerer
from gateway.backend import Backend
from gateway.catalog import Catalog, ModelCard
from gateway.observe.logs import Log
from gateway.parts.models import abilities_of
from gateway.parts.policies import Policies, Surroundings, weights_of
from gateway.settings import Settings, Tenant
from gateway.verify.caches import semantic_lacks
from gateway.verify.rules import AUTO

NOMINAL = (Price(1, 1), Price(10, 10))
"""Where neither model has a price: small is taken to cost a tenth of large."""


@dataclass(frozen=True, slots=True)
class Auto:
    """The cascade as a layer, the models by name with `auto` among them, and who has which
    policy. `take` is told of reloaded tenants."""

    layer: Answerer
    catalog: Catalog
    policies: Policies
    take: Callable[[tuple[Tenant, ...]], None]


def build_auto(
    settings: Settings,
    backend: Backend,
    log: Log,
    embed: Embed | None = None,
    embedder: Callable[[], str] = lambda: "",
) -> Auto:
    """`embed` makes vectors, `embedder` names what makes them (empty: not known yet).

    Raises CannotLoad for a policy that was named and cannot be used."""
    small, large = settings.cascade.small, settings.cascade.large
    first_tokens = FirstTokens(time.monotonic)
    weights = team_weights(settings, backend.cards)
    policies = Policies(settings, Surroundings(weights, embedder, first_tokens.expected_s))
    for one in policies.by_tenant.values():
        for reason in one.passed_over:
            log.warning("cascade policy passed over", tenant=one.tenant, reason=reason)
    watched = {
        name: first_tokens.watched(name, one) if name in {small, large} else one
        for name, one in backend.answerers.items()
    }
    team = Team(
        small,
        large,
        prices=prices_of(settings, backend.cards),
        abilities={name: abilities_of(card) for name, card in backend.cards.items()},
        embed=embed,
    )
    catalog = Catalog(
        backend.cards,
        auto=auto_card(settings, backend.cards),
        policies=policies.keys,
        roles={"small": small, "large": large},
        unbounded=unbounded_in(settings, backend.cards),
    )
    # Whatever has no route of its own gets always-large.
    layer = Cascade(watched, fixed(large), team, policies.routes)
    return Auto(layer, catalog, policies, lambda tenants: policies.take(tenants, log.warning))


def prices_of(settings: Settings, cards: Mapping[str, ModelCard]) -> dict[str, Price]:
    """The engine's prefix tree gives for nothing what it holds; a server elsewhere does not tell
    beforehand what it holds, so that nothing is expected of it."""
    small, large = settings.cascade.small, settings.cascade.large
    if not any(cards[name].price_in or cards[name].price_out for name in (small, large)):
        return dict(zip((small, large), NOMINAL, strict=True))
    prices = {}
    for name in (small, large):
        card = cards[name]
        cached = 0.0 if settings.models[name].kind == "engine" else card.price_in
        prices[name] = Price.per_mtok(card.price_in, card.price_out, cached)
    return prices


def team_weights(settings: Settings, cards: Mapping[str, ModelCard]) -> str:
    """What a calibrated policy has to carry."""
    cascade = settings.cascade
    small, large = (
        cards[name].weights or cards[name].fingerprint for name in (cascade.small, cascade.large)
    )
    return weights_of(small, large)


def auto_card(settings: Settings, cards: Mapping[str, ModelCard]) -> ModelCard:
    """`auto` as a model: it can what either can, costs at most what large does, and its
    fingerprint names both."""
    small, large = cards[settings.cascade.small], cards[settings.cascade.large]
    prints = f"auto {small.fingerprint} {large.fingerprint}"
    contexts = (small.context, large.context)
    return replace(
        large,
        fingerprint=hashlib.blake2b(prints.encode(), digest_size=16).hexdigest(),
        context=None if None in contexts else max(filter(None, contexts)),
        takes_extra=small.takes_extra or large.takes_extra,
    )


def unbounded_in(settings: Settings, cards: Mapping[str, ModelCard]) -> frozenset[str]:
    """Names under which somebody may answer whose context is not known: its answer ends when it
    ends, unless it is told to."""
    names = {
        name
        for name, model in settings.models.items()
        if any(cards[one].context is None for one in (name, *model.fallbacks))
    }
    if names & {settings.cascade.small, settings.cascade.large}:
        names.add(AUTO)
    return frozenset(names)


def cache_error_of(settings: Settings, tenant: str) -> float:
    """How often the tenant's semantic cache may be wrong, as it promises; 0 where it is off, or of
    a kind that promises nothing."""
    semantic = settings.semantic
    on = not semantic_lacks(settings) if semantic.enabled is None else semantic.enabled
    if not on or semantic.policy != "bounded":
        return 0.0
    own = next((one.semantic_max_error for one in settings.tenants if one.name == tenant), None)
    return semantic.max_error if own is None else own
