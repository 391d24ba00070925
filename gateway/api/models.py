"""GET /v1/models and /v1/models/{id}: what this key may ask, with context length and price."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from engine.contract import UnknownModel
from gateway.catalog import Catalog, ModelCard
from gateway.tenants.keys import Keys


def router(catalog: Catalog, keys: Keys) -> APIRouter:
    routes = APIRouter(tags=["models"])

    def visible(request: Request) -> list[ModelCard]:
        given = request.headers.get("authorization")
        return catalog.visible_to(keys.tenant(given.encode("latin-1") if given else None))

    @routes.get("/v1/models", summary="Models that this key may ask")
    def list_models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": [_shown(card) for card in visible(request)]}

    @routes.get("/v1/models/{name}", summary="One model")
    def one_model(name: str, request: Request) -> dict[str, Any]:
        cards = {card.name: card for card in visible(request)}
        if name not in cards:
            raise UnknownModel(f"There is no model {name!r}. Models here: {', '.join(cards)}.",
                               param="model", code="model_not_found")  # fmt: skip
        return _shown(cards[name])

    return routes


def _shown(card: ModelCard) -> dict[str, Any]:
    """OpenAI's shape, and ours beside it."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "sluice",
        "context_length": card.context,
        "price_in_usd_per_mtok": card.price_in,
        "price_out_usd_per_mtok": card.price_out,
    }
