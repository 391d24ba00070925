"""Which models there are, and what a caller's request means among them.

`Catalog.resolve` is the last step at the edge: the model's name (aliases, `Sluice-Route`) becomes a
known one, the tenant's clamps are applied, and the Call gets its scope and the fingerprint of the
weights that may answer. Nothing inside validates again, and nothing the caller sends can choose its
own scope.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import orjson

from engine.contract import BadCall, Call, Denied, UnknownModel
from gateway.settings import Tenant
from gateway.verify import AUTO


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


class Catalog:
    """The models by name, `auto` among them. Immutable after construction."""

    def __init__(self, cards: Mapping[str, ModelCard], auto: ModelCard | None = None) -> None:
        everything = {AUTO: replace(auto, name=AUTO), **cards} if auto else dict(cards)
        self._cards: Mapping[str, ModelCard] = MappingProxyType(everything)

    def __iter__(self) -> Iterator[ModelCard]:
        return iter(self._cards.values())

    def card(self, name: str) -> ModelCard:
        """Raises UnknownModel, which names the models that there are."""
        found = self._cards.get(name)
        if found is None:
            raise UnknownModel(
                f"There is no model {name!r}. Models here: {', '.join(self._cards)}.",
                param="model",
                code="model_not_found",
            )
        return found

    def visible_to(self, tenant: Tenant) -> list[ModelCard]:
        return [card for card in self if not tenant.models or card.name in tenant.models]

    def resolve(self, call: Call, tenant: Tenant, scope: str, route: str | None = None) -> Call:
        """The Call as it is answered and keyed.

        Raises UnknownModel, Denied, or BadCall when the model cannot do what is asked.
        """
        asked = route or call.model
        card = self.card(tenant.aliases.get(asked, asked))
        if tenant.models and card.name not in tenant.models:
            raise Denied(
                f"This key may not use model {card.name!r}; it may use: "
                f"{', '.join(tenant.models)}.",
                param="model",
                code="model_not_allowed",
            )
        if call.extra is not None and not card.takes_extra:
            raise _unknown_parameter(call.extra, card.name)
        return replace(
            call,
            model=card.name,
            scope=scope,
            fingerprint=card.fingerprint,
            max_tokens=_clamped(call.max_tokens, card, tenant),
        )


def scope_of(tenant: Tenant, user: str | None) -> str | None:
    """Who may share answers and prefixes with this request; None: nobody, for it does not say
    which end user it is for. Kinds are told apart by what stands before the colon, and a tenant's
    name holds no slash, so that no user can be spelled like another's scope."""
    if tenant.cache_scope == "tenant":
        return f"tenant:{tenant.name}"
    if tenant.cache_scope == "user":
        return f"user:{tenant.name}/{user}" if user else None
    return tenant.cache_scope


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
