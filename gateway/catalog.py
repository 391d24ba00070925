"""Which models there are, and what a caller's request means among them.

`Catalog.place` is the last step before there is a Call: the model's name (aliases, `Sluice-Route`)
becomes a known one, the tenant's clamps are applied, and the request gets its scope and the
fingerprint of the weights that may answer. Nothing inside validates again, and nothing the caller
sends can choose its own scope.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import msgspec
import orjson

from engine.contract import BadCall, Denied, Json, UnknownModel
from gateway.settings import Tenant
from gateway.verify.rules import AUTO

_ALONE = "alone:"
LONGEST_UNKNOWN = 8192
"""Tokens of an answer where neither the request nor the model's card bounds it: what a budget
reserves, and what the model is therefore told."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the gateway knows of a model. `context` in tokens, prices in US dollars per million."""

    name: str
    fingerprint: str
    context: int | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    created: int = 0
    takes_extra: bool = False
    """Whether parameters that we do not know are passed on (a remote server) or refused (ours)."""
    weights: str = ""
    """Names what a calibration stands on, whatever the precision and the context. Empty: the
    fingerprint does."""
    tools: bool = True
    json: bool = True
    vision: bool = False
    logprobs: bool = True


class Place(msgspec.Struct, frozen=True, gc=False):
    """What the gateway, and never the caller, decides of a Call. (A struct: a frozen dataclass
    takes five times as long to make, and each request makes one.)"""

    model: str
    scope: str
    fingerprint: str
    max_tokens: int | None
    policy: str = ""
    longest: int | None = None


class Catalog:
    """The models by name, `auto` among them. Immutable after construction."""

    def __init__(
        self,
        cards: Mapping[str, ModelCard],
        auto: ModelCard | None = None,
        *,
        policies: Mapping[str, str] = MappingProxyType({}),
        roles: Mapping[str, str] = MappingProxyType({}),
        unbounded: frozenset[str] = frozenset(),
    ) -> None:
        """`policies`: tenant → what `auto`'s answers may cost in quality for it (`Call.policy`).
        `roles`: names that stand for a model where no model has them (small, large).
        `unbounded`: names under which somebody may answer whose context is not known."""
        self._unbounded = unbounded
        self._policies = policies
        self._roles = roles
        everything = {AUTO: replace(auto, name=AUTO), **cards} if auto else dict(cards)
        self._cards: Mapping[str, ModelCard] = MappingProxyType(everything)

    def __iter__(self) -> Iterator[ModelCard]:
        return iter(self._cards.values())

    def card(self, name: str) -> ModelCard:
        """Raises UnknownModel, which names the models that there are."""
        found = self._cards.get(name) or self._cards.get(self._roles.get(name, ""))
        if found is None:
            raise UnknownModel(
                f"There is no model {name!r}. Models here: {', '.join(self._cards)}.",
                param="model",
                code="model_not_found",
            )
        return found

    def visible_to(self, tenant: Tenant) -> list[ModelCard]:
        return [card for card in self if not tenant.models or card.name in tenant.models]

    def place(
        self,
        asked: str,
        max_tokens: int | None,
        extra: Json | None,
        tenant: Tenant,
        scope: str,
        *,
        routed: bool = False,
    ) -> Place:
        """Where a request for model `asked` is answered. `routed`: the caller chose the route by
        its header, and the tenant's default does not apply.

        Raises UnknownModel, Denied, or BadCall when the model cannot do what is asked.
        """
        name = tenant.aliases.get(asked, asked)
        if name == AUTO and tenant.default_route is not None and not routed:
            name = tenant.default_route
        card = self.card(name)
        if tenant.models and card.name not in tenant.models:
            raise Denied(
                f"This key may not use model {card.name!r}; it may use: "
                f"{', '.join(tenant.models)}.",
                param="model",
                code="model_not_allowed",
            )
        if extra is not None and not card.takes_extra:
            raise _unknown_parameter(extra, card.name)
        longest = _clamped(max_tokens, card, tenant)
        policy = self._policies.get(tenant.name, "") if card.name == AUTO else ""
        must_end = longest is None and tenant.has_budget and card.name in self._unbounded
        bound = LONGEST_UNKNOWN if must_end else None
        return Place(card.name, scope, card.fingerprint, longest, policy, bound)


def scope_of(tenant: Tenant, user: str | None, request_id: str) -> str:
    """Who may share answers and prefixes with a request, and speak of its answer. Where users are
    kept apart and it names none, that is nobody (`is_alone`). Kinds are told apart by what stands
    before the colon, and a tenant's name holds no slash, so that no user can be spelled like
    another's scope."""
    if tenant.cache_scope == "tenant":
        return f"tenant:{tenant.name}"
    if tenant.cache_scope == "user":
        return f"user:{tenant.name}/{user}" if user else f"{_ALONE}{request_id}"
    return tenant.cache_scope


def is_alone(scope: str) -> bool:
    return scope.startswith(_ALONE)


def _clamped(asked: int | None, card: ModelCard, tenant: Tenant) -> int | None:
    """The longest answer: what is asked, within the model (an error) and the tenant (a clamp)."""
    if asked is not None and card.context is not None and asked > card.context:
        raise BadCall(
            f"max_tokens: {asked} is more than the whole context of model {card.name!r}, "
            f"{card.context} tokens; ask for less.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    if tenant.max_tokens is None:
        return asked
    return tenant.max_tokens if asked is None else min(asked, tenant.max_tokens)


def _unknown_parameter(extra: str, model: str) -> BadCall:
    names = sorted(orjson.loads(extra))
    named = ", ".join(names)
    return BadCall(
        f"Model {model!r} does not know {named}; leave it out. A parameter that is not honoured is "
        "never dropped silently.",
        param=names[0],
        code="unknown_parameter",
    )
