"""Which model answers: the innermost layer before the models themselves.

A call names a model or `auto`. A named model is asked; for `auto` a route decides and says why. The
route is a plain function from a call to a choice, so that it is tested without any model. For now
there is one route, `fixed`; trying the small model first and judging its answer comes with the
cascade's own issue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from cascade.routes.base import Choice
from engine.contract import Answer, Answerer, Call, Decision, Trail, UnknownModel

AUTO = "auto"

Route = Callable[[Call], Choice]


class Cascade:
    """Hands each call to the answerer of its model. Holds no state."""

    def __init__(self, models: Mapping[str, Answerer], route: Route) -> None:
        self._models = dict(models)
        self._route = route

    def __call__(self, call: Call, trail: Trail) -> Answer:
        """The chosen model's own answer, not wrapped: a layer that adds nothing costs nothing.

        Raises UnknownModel for a name that no model has.
        """
        if call.model == AUTO:
            choice = self._route(call)
            trail.decisions.append(Decision("cascade", choice.model, choice.reason))
            call = replace(call, model=choice.model)
        answerer = self._models.get(call.model)
        if answerer is None:
            raise UnknownModel(
                f"There is no model {call.model!r}. Models here: {', '.join(self._models)}.",
                param="model",
                code="model_not_found",
            )
        return answerer(call, trail)
