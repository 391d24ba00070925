"""[cascade] and [models.*] → what a calibrated policy has to carry, without loading a model."""

from __future__ import annotations

from gateway.parts.policies import weights_of
from gateway.settings import Settings


class Unreadable(Exception):
    """A model's files cannot be read; the text names the setting."""


def team_weights_of(settings: Settings) -> str:
    """As parts/cascade.py has it of models that are loaded. Raises Unreadable."""
    return weights_of(*(_weights(settings, name) for name in (settings.cascade.small,
                                                              settings.cascade.large)))  # fmt: skip


def _weights(settings: Settings, name: str) -> str:
    model = settings.models[name]
    if model.kind == "openai":
        from gateway.parts.upstreams import card_of  # noqa: PLC0415  the HTTP client

        return card_of(name, model).weights
    from engine.loading import fingerprint  # noqa: PLC0415  3 s of torch

    assert model.path is not None, "gateway.verify has looked"
    if not (model.path / "config.json").is_file():
        raise Unreadable(
            f"models.{name}.path: {model.path} is not a checkpoint directory; a policy belongs to "
            "the weights that were labelled."
        )
    try:
        return fingerprint(model.path)
    except OSError as error:
        raise Unreadable(f"models.{name}.path: {model.path} cannot be read ({error}).") from None
