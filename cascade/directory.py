"""The models by name: hands each call to the answerer of its model.

`auto` is a fixed model here, named in the settings; routes that choose by call come with the
cascade.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engine.contract import Answer, Answerer, Call, Decision, Trail, UnknownModel

AUTO = "auto"


class Directory:
    """Holds no state beside the models. `auto` names the model that stands for "auto"."""

    def __init__(self, models: Mapping[str, Answerer], auto: str) -> None:
        assert auto in models, auto
        self._models = dict(models)
        self._auto = auto
        self._why = Decision("cascade", auto, f"policy fixed: always {auto}")

    def __call__(self, call: Call, trail: Trail) -> Answer:
        """The model's own answer, not wrapped: a layer that adds nothing costs nothing.

        Raises UnknownModel for a name that no model has.
        """
        if call.model == AUTO:
            trail.decisions.append(self._why)
            call = replace(call, model=self._auto)
        answerer = self._models.get(call.model)
        if answerer is None:
            raise UnknownModel(
                f"There is no model {call.model!r}. Models here: {', '.join(self._models)}.",
                param="model",
                code="model_not_found",
            )
        return answerer(call, trail)
