"""[models.*] → everything that can be asked by name: the engine's models and those elsewhere.

torch is imported only where the engine has a model, the HTTP client only where a server elsewhere
is named: a gateway in front of two remote models starts in a second and needs neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from cascade.ability import Abilities, lacking
from cascade.guard import Fallbacks
from engine.contract import Answerer, Call, Trail
from gateway.backend import Backend
from gateway.catalog import ModelCard
from gateway.observe.logs import Log
from gateway.observe.metrics import EngineState
from gateway.settings import Cascade, Engine, Settings
from gateway.tenants.roster import Roster
from gateway.verify.rules import AUTO

Progress = Callable[[str], None]
May = Callable[[str, str], bool]
"""(tenant, model) → whether that model may answer it."""
DEVICES = Path("/dev")


class _Elsewhere(Protocol):
    """parts/upstreams.py, without importing it."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def errors(self) -> Mapping[tuple[str, str], int]: ...


class Models:
    """A backend made of both kinds. Either may be missing, not both."""

    def __init__(
        self,
        own: Backend | None,
        elsewhere: _Elsewhere | None,
        answerers: Mapping[str, Answerer],
        cards: Mapping[str, ModelCard],
    ) -> None:
        self._own = own
        self._elsewhere = elsewhere
        self.answerers = answerers
        self.cards = cards

    async def start(self) -> None:
        for part in (self._own, self._elsewhere):
            if part is not None:
                await part.start()

    async def stop(self) -> None:
        for part in (self._elsewhere, self._own):
            if part is not None:
                await part.stop()

    def states(self) -> Mapping[str, EngineState]:
        return self._own.states() if self._own else {}

    def upstream_errors(self) -> Mapping[tuple[str, str], int]:
        return self._elsewhere.errors() if self._elsewhere else {}

    def problem(self) -> str | None:
        """A server elsewhere that is away makes nobody unready: others, and the caches, answer."""
        return self._own.problem() if self._own else None

    def lost(self) -> str | None:
        return self._own.lost() if self._own else None


def load_models(
    settings: Settings, environ: Mapping[str, str], log: Log, progress: Progress
) -> Backend:
    """Raises CannotLoad, before the gateway listens."""
    kinds = {model.kind for model in settings.models.values()}
    answerers: dict[str, Answerer] = {}
    cards: dict[str, ModelCard] = {}
    elsewhere, own = None, None
    if "openai" in kinds:  # first: a key that is missing is found before weights are read
        from gateway.parts.upstreams import Upstreams  # noqa: PLC0415

        elsewhere = Upstreams(settings, environ, log)
        answerers |= elsewhere.answerers
        cards |= elsewhere.cards
    if "engine" in kinds:
        own = _engine(settings, log, progress)
        answerers |= own.answerers
        cards |= own.cards
    named = {name: answerers[name] for name in settings.models}
    return Models(own, elsewhere, named, _told(settings, cards))


def has_own_process(engine: Engine, devices: Path = DEVICES) -> bool:
    """Whether the engine computes in a process of its own. Under `auto` by what the machine seems
    to have, without PyTorch, which the gateway's process can do without: a GPU that turns out to be
    of no use leaves an engine on the CPU in a process of its own, which is right too."""
    if engine.process != "auto":
        return engine.process == "own"
    if engine.device != "auto":
        return engine.device != "cpu"
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()


def _engine(settings: Settings, log: Log, progress: Progress) -> Backend:
    if has_own_process(settings.engine):
        from gateway.engine_process.backend import OwnProcess  # noqa: PLC0415

        return OwnProcess(settings, log, progress)
    from gateway.engine_backend import load_backend  # noqa: PLC0415

    return load_backend(settings, log, progress)


def abilities_of(card: ModelCard) -> Abilities:
    return Abilities(
        context_tokens=card.context,
        tools=card.tools,
        json=card.json,
        vision=card.vision,
        logprobs=card.logprobs,
        extra=card.takes_extra,
    )


class WithFallbacks:
    """A backend whose models have their fallbacks around them. Fallbacks are asked as they are:
    theirs are not followed, so that no circle can be drawn."""

    def __init__(self, settings: Settings, inner: Backend, may: May) -> None:
        abilities = {name: abilities_of(card) for name, card in inner.cards.items()}

        def serves(name: str, call: Call, trail: Trail) -> bool:
            return may(trail.tenant, name) and not lacking(call, abilities[name])

        wrapped = dict(inner.answerers)
        for name, model in settings.models.items():
            if model.fallbacks:
                chain = [(one, inner.answerers[one]) for one in (name, *model.fallbacks)]
                wrapped[name] = Fallbacks(chain, serves)
        self.answerers: Mapping[str, Answerer] = wrapped
        self.cards = inner.cards
        self.start, self.stop = inner.start, inner.stop
        self.states, self.upstream_errors = inner.states, inner.upstream_errors
        self.problem, self.lost = inner.problem, inner.lost


def permitted(roster: Roster, cascade: Cascade) -> May:
    """What a tenant may be answered by, as it is or last was: the models it may ask for, and with
    `auto` those that `auto` asks. Who is no tenant (a judge of ours) may use all."""
    team = {cascade.small, cascade.large}

    def may(tenant: str, model: str) -> bool:
        try:
            allowed = roster[tenant].models
        except KeyError:
            return True
        return not allowed or model in allowed or (AUTO in allowed and model in team)

    return may


def _told(settings: Settings, cards: Mapping[str, ModelCard]) -> dict[str, ModelCard]:
    """Cards in the order of the settings. Whoever may answer in a model's place is in its
    fingerprint, so that another chain of fallbacks means other cache keys."""
    told = {}
    for name, model in settings.models.items():
        card = cards[name]
        if model.fallbacks:
            prints = " ".join(cards[one].fingerprint for one in (name, *model.fallbacks))
            digest = hashlib.blake2b(prints.encode(), digest_size=16).hexdigest()
            card = replace(card, fingerprint=digest)
        told[name] = card
    return told
