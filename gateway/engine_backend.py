"""The engine as a backend: settings → loaded models → answerers.

Models are found from the directories that [models.*] names, with one memory budget for the keys and
values of all of them. What cannot be loaded is told in the operator's words (`CannotLoad`), before
anything listens on a port.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from engine.build import CPU, ModelSpec, build_lanes
from engine.contract import Answerer
from engine.cuda.card import NoDevice, choose_device, why_not
from engine.engine import Engine
from engine.lane import Lane, LaneStats
from engine.loading import LoadError, fingerprint
from engine.pool import PoolTooSmall
from engine.runner import use_threads
from engine.scheduler import Limits
from gateway.backend import CannotLoad
from gateway.catalog import ModelCard
from gateway.observe.logs import Log
from gateway.observe.metrics import EngineState
from gateway.settings import Engine as EngineSettings
from gateway.settings import Settings

KV_SHARE = 0.25
"""Of the memory that is free at start: weights, the caches and the system want theirs, too."""
KV_MOST_BYTES = 1 << 30
KV_LEAST_BYTES = 256 << 20
STOP_GRACE_S = 1.0
TURN_S = 0.5e-3
"""How long one of event loop and engine thread keeps Python's lock from the other. Five ms, the
default, are a whole step of a small model on a GPU: with half a ms, 128 streams of it got 4 % more
tokens and each token came 20 % sooner at 80 % load."""

Progress = Callable[[str], None]


class EngineBackend:
    """One engine thread and the models it holds. Started and stopped once."""

    def __init__(
        self, engine: Engine, cards: Mapping[str, ModelCard], *, device: str = "cpu"
    ) -> None:
        """`device`: the kind that it computes on, cpu or cuda."""
        self.engine = engine
        self.device = device
        self.cards: Mapping[str, ModelCard] = dict(cards)
        self.answerers: Mapping[str, Answerer] = {name: engine.answerer(name) for name in cards}

    async def start(self) -> None:
        sys.setswitchinterval(TURN_S)
        self.engine.start()

    async def stop(self) -> None:
        await self.engine.stop(STOP_GRACE_S)

    def states(self) -> Mapping[str, EngineState]:
        return {name: _state(stats) for name, stats in self.engine.stats().items()}

    def upstream_errors(self) -> Mapping[tuple[str, str], int]:
        return {}

    def problem(self) -> str | None:
        return self.engine.problem

    def lost(self) -> str | None:
        return self.engine.lost


def load_backend(settings: Settings, log: Log, progress: Progress) -> EngineBackend:
    """Load every configured model of the engine's kind. Raises CannotLoad."""
    use_threads(settings.engine.threads or _threads())
    device = CPU
    try:
        device = _device(settings, progress)
        lanes = _load(settings, device, progress)
    except NoDevice as error:
        if settings.engine.device != "auto":
            raise CannotLoad(f"engine.device: {error}") from error
        log.warning("engine", device="cpu", why=str(error))
        progress(f"falling back to the CPU: {error}")
        device, lanes = CPU, _load(settings, CPU, progress)
    paths = own_models(settings)
    prints = {name: fingerprint(path) for name, path in paths.items()}
    cards = {
        name: ModelCard(
            name=name,
            fingerprint=answers_as(prints[name], settings.models[name].dtype, lane.max_tokens),
            context=lane.max_tokens,
            price_in=settings.models[name].price_in,
            price_out=settings.models[name].price_out,
            created=_modified(paths[name]),
            weights=prints[name],
            tools=False,
            json=False,
        )
        for name, lane in lanes.items()
    }
    engine = Engine(lanes, clock=time.monotonic, report=_reporter(log))
    return EngineBackend(engine, cards, device=device.type)


def _device(settings: Settings, progress: Progress) -> torch.device:
    device = choose_device(settings.engine.device)
    if settings.engine.device == "auto" and device.type == "cpu" and torch.version.cuda is not None:
        progress(f"computing on the CPU: {why_not(0)}")
    return device


def _load(settings: Settings, device: torch.device, progress: Progress) -> dict[str, Lane]:
    """Raises CannotLoad, and NoDevice where the models do not fit on a GPU."""
    engine = settings.engine
    specs = {
        name: ModelSpec(
            path,
            _dtype(settings.models[name].dtype),
            kv_weight=settings.models[name].kv_share,
            context=settings.models[name].max_context,
        )
        for name, path in own_models(settings).items()
    }
    kv_bytes = engine.kv_memory_mib << 20 if engine.kv_memory_mib else None
    if kv_bytes is None and device.type == "cpu":
        kv_bytes = _kv_bytes()
    try:
        return build_lanes(
            specs,
            kv_bytes=kv_bytes,
            page_size=engine.page_size,
            limits=limits_for(engine, device),
            device=device,
            progress=progress,
        )
    except PoolTooSmall as error:
        raise CannotLoad(f"engine.kv_memory_mib, models.*.max_context: {error}") from error
    except (LoadError, ValueError) as error:
        raise CannotLoad(str(error)) from error


def limits_for(engine: EngineSettings, device: torch.device) -> Limits:
    """What is unset follows the device: the time of a step that nobody minds holds 512 tokens of a
    small model on a CPU, and 8,192 of a large one on a GPU."""
    tokens, running = (512, 64) if device.type == "cpu" else (8192, 256)
    if engine.max_batched_tokens is not None:
        tokens = engine.max_batched_tokens
        running = min(running, max(1, tokens // 2))
    if engine.max_running is not None:
        running = engine.max_running
        tokens = tokens if engine.max_batched_tokens else max(tokens, 2 * running)
    return Limits(max_batched_tokens=tokens, max_running=running, max_waiting=engine.max_waiting)


def own_models(settings: Settings) -> dict[str, Path]:
    """The directories of the models that the engine runs, by name."""
    return {
        name: model.path
        for name, model in settings.models.items()
        if model.kind == "engine" and model.path is not None
    }


def answers_as(weights: str, dtype: str, longest: int) -> str:
    """The fingerprint of what a model answers: its weights', and the settings that change it. An
    answer that was cut at a shorter context, or computed in another precision, is another one."""
    made_of = f"{weights} {dtype} {longest}".encode()
    return hashlib.blake2b(made_of, digest_size=16).hexdigest()


def _state(stats: LaneStats) -> EngineState:
    pages = {
        "free": stats.pages_free,
        "running": stats.pages_running,
        "cached": stats.pages_cached,
        "leased": stats.pages_leased,
    }
    computed = {
        "prompt": stats.prefilled_total,
        "completion": stats.generated_total,
        "reused": stats.cached_total,
    }
    return EngineState(
        running=stats.running,
        waiting=stats.waiting,
        preemptions=stats.preemptions_total,
        displaced=stats.displaced_total,
        pages=pages,
        batch_sequences=stats.batch_sequences,
        batch_tokens=stats.batch_tokens,
        tokens_per_s=stats.tokens_per_s,
        computed=computed,
    )


def _reporter(log: Log) -> Callable[[str, BaseException], None]:
    def report(what: str, error: BaseException) -> None:
        log.error("engine", what=what, exc_info=error)

    return report


def _dtype(name: str) -> torch.dtype | None:
    """None: the engine takes what the device does fast."""
    named: dict[str, torch.dtype] = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    return named.get(name)


def _threads() -> int:
    """All cores but one, which the event loop works on."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _kv_bytes() -> int:
    """A share of what is free, within bounds."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(KV_MOST_BYTES, max(KV_LEAST_BYTES, free * KV_SHARE)))


def _modified(directory: Path) -> int:
    return int(directory.stat().st_mtime)
