"""Settings → running system. Here and in parts/ alone are concrete classes of other packages named:
parts/ builds what one layer needs, this file puts the layers around each other.

A request walks through the onion from the top of `_onion` to its bottom. Its outermost step,
authentication, is at the edge (api/endpoint.py): who asks has to be known before a Call exists.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache.exact import Exact, Record, Shelf, StoredOnly
from cache.join import Join
from cache.store.base import Store
from engine.contract import Answerer
from gateway.api import (
    admin_caches,
    admin_decisions,
    admin_usage,
    chat,
    completions,
    docs,
    embeddings,
    feedback,
    health,
    models,
)
from gateway.api.again import remembering
from gateway.api.desk import Desk
from gateway.api.endpoint import Edge, Endpoint
from gateway.app import Front, build_app
from gateway.backend import Backend
from gateway.configure import Loaded
from gateway.dashboard import page
from gateway.dashboard.history import Pulse
from gateway.drain import Drain
from gateway.live import Live
from gateway.observe.budget_metrics import BudgetsNow
from gateway.observe.content import ContentLayer
from gateway.observe.keeper import Keeper
from gateway.observe.ledger import Ledger, LedgerLayer
from gateway.observe.logs import Log
from gateway.observe.metrics import Metrics, StoreFaults, UpstreamErrors
from gateway.observe.rollup import RollUp
from gateway.parts.cascade import build_auto, cache_error_of
from gateway.parts.exact import Cache, build_cache, exact_terms
from gateway.parts.judge import build_judge
from gateway.parts.ledger import build_ledger, part_of
from gateway.parts.meaning import Meaning, build_meaning
from gateway.parts.models import WithFallbacks, permitted
from gateway.parts.shadow import build_shadow, learner_of
from gateway.parts.tenants import Tenancy, build_tenancy
from gateway.reload import Reloader
from gateway.settings import Traces
from gateway.store_health import StoreHealth
from gateway.wire.chat import ChatRequest
from gateway.wire.completions import CompletionRequest

if TYPE_CHECKING:
    from gateway.parts.embedding import Embedding

FOLD_EVERY_S = 0.02
"""Folding a record takes 1 µs: so often, that a busy gateway is never held up for long by it."""


@dataclass(frozen=True, slots=True)
class System:
    """What runs: the application that uvicorn serves, and the drain that stops it."""

    app: Front
    drain: Drain
    answerer: Answerer
    rollup: RollUp
    live: Live
    reloader: Reloader
    meaning: Meaning


def assemble(
    loaded: Loaded, backend: Backend, log: Log, embedding: Embedding | None = None
) -> System:
    """Build everything; opens nothing (the application's lifespan does). `embedding` is there for
    tests: without one it is built as it is set."""
    settings, live = loaded.settings, Live(loaded)
    reloader, tenancy = Reloader(live, loaded, log), build_tenancy(live, log)
    backend = WithFallbacks(settings, backend, permitted(tenancy.roster, settings.cascade))
    cache = build_cache(settings.exact, log)
    store_health = StoreHealth(cache.store, log)
    shelf = Shelf(
        cache.store,
        terms_of=exact_terms(settings.exact, tenancy.roster),
        on_fault=store_health.tell,
    )
    meaning = build_meaning(settings, tenancy.roster, log, embedding)
    auto = build_auto(settings, backend, log, meaning.embed(), meaning.embedder)
    live.on_tenants(auto.take)
    catalog, large = auto.catalog, backend.cards[settings.cascade.large]
    ledger, keeper = build_ledger(settings.ledger, backend.cards.values(), large, log)
    rollup, part = keeper.rollup, part_of(settings)
    meaning.judge = build_judge(settings, backend, ledger)
    learning = build_shadow(settings, auto, backend, tenancy.roster, ledger=ledger, log=log)
    shadow = learning.shadow
    cache.on_purge(learning.erase)
    paid = tenancy.spending(shadow, backend, settings)
    onion = _onion(paid, cache, shelf, meaning, ledger)
    told = ContentLayer(onion, tenancy.logs_content(settings.logs.content), log)
    answerer, stop_tracing = _traced(settings.traces, told)
    drain = Drain(settings.server.max_inflight, settings.server.shutdown_grace_s)
    pulse = Pulse(backend.states)
    more = (
        BudgetsNow(tenancy.budgets.states),
        UpstreamErrors(backend.upstream_errors),
        StoreFaults(store_health.counts),
    )
    metrics = Metrics(rollup, backend.states, lambda: drain.inflight, [*meaning.metrics(), *more])
    edge = Edge(
        server=settings.server,
        keys=tenancy.keys,
        limits=tenancy.limits,
        catalog=catalog,
        answerer=answerer,
        ledger=ledger,
        drain=drain,
        log=log,
        policies=auto.policies.notes,
    )
    desk = Desk(tenancy.keys, tenancy.limits, settings.server)
    learners = {**meaning.learners(), "cascade": learner_of(shadow)}
    app = build_app(
        hot={
            path: Endpoint(edge, parse, remembering(parse))
            for path, parse in (
                (chat.PATH, chat.new_parser()),
                (completions.PATH, completions.new_parser()),
            )
        },
        shapes={chat.PATH: ChatRequest, completions.PATH: CompletionRequest},
        routers=[
            models.router(catalog, tenancy.keys),
            embeddings.router(desk, meaning.vectors()),
            feedback.router(desk, learners),
            health.router(
                drain,
                {"models": backend.problem},
                {
                    "store": store_health.problem,
                    "keys": tenancy.sync.problem,
                    "budgets": tenancy.budgets.problem,
                    "settings": live.said_problem,
                },
                metrics,
                tenancy.gate,
                hints={"settings": live.said_waiting},
            ),
            docs.router(),
            page.router(keeper, backend.states, pulse, drain=drain, gate=tenancy.gate, part=part),
            admin_decisions.router(
                keeper,
                auto.policies.by_tenant,
                lambda tenant: cache_error_of(live.settings, tenant),
                shadow,
                tenancy.gate,
            ),
            admin_caches.router(cache.store, meaning.semantic, learning.erase, tenancy.gate),
            *tenancy.routers,
            admin_usage.router(keeper, tenancy.gate, part, lambda: tenancy.roster.in_force),
        ],
        lifespan=lambda: _running(
            tenancy,
            backend,
            cache.store,
            keeper,
            meaning,
            tasks=(reloader.run, shadow.run, pulse.run),
            stop_tracing=stop_tracing,
        ),
    )
    return System(app, drain, answerer, rollup, live, reloader, meaning)


def _onion(
    model: Answerer,
    cache: Cache,
    shelf: Shelf,
    meaning: Meaning,
    ledger: Ledger,
) -> Answerer:
    """The layers, outermost last. Each wraps the one above it in this list."""
    by_meaning = meaning.around(StoredOnly(model))
    recorded = Record(shelf, by_meaning)
    shared = cache.share(shelf, recorded)
    joined = Join(shared, may_share=shelf.may_share, key=shelf.key)
    cached = cache.bound(Exact(shelf, joined))
    return LedgerLayer(cached, ledger)


def _traced(traces: Traces, onion: Answerer) -> tuple[Answerer, Callable[[], None]]:
    """The onion, with a span around each answer where they are wanted, and what ends that."""
    if traces.endpoint is None:
        return onion, lambda: None
    from gateway.observe.traces import TraceLayer  # noqa: PLC0415 - an optional dependency
    from gateway.parts.traces import build_provider  # noqa: PLC0415

    provider = build_provider(traces)
    return TraceLayer(onion, provider), provider.shutdown


@asynccontextmanager
async def _running(
    tenancy: Tenancy,
    backend: Backend,
    store: Store,
    keeper: Keeper,
    meaning: Meaning,
    *,
    tasks: tuple[Callable[[], Coroutine[Any, Any, None]], ...],
    stop_tracing: Callable[[], None],
) -> AsyncIterator[None]:
    """Open in order, close in the opposite one."""
    async with tenancy.running():
        await keeper.open()
        await store.open()
        await backend.start()
        work = (_fold(keeper.rollup), keeper.run(), *(task() for task in tasks))
        running = [asyncio.create_task(one) for one in work]
        try:
            async with meaning.running():
                yield
        finally:
            for task in running:
                task.cancel()
            for task in running:
                with suppress(asyncio.CancelledError):
                    await task
            await backend.stop()
            await store.close()
            await keeper.close()
            await asyncio.to_thread(stop_tracing)


async def _fold(rollup: RollUp) -> None:
    """Keep the account short, whether or not anybody reads it."""
    while True:
        await asyncio.sleep(FOLD_EVERY_S)
        rollup.fold()
