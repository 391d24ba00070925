"""Tenants → who they are, what they may, and the stores behind it; live while serving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi import APIRouter

from engine.contract import Answerer
from gateway.api import admin, admin_keys
from gateway.api.admin_gate import AdminGate
from gateway.backend import Backend
from gateway.live import Live
from gateway.observe.logs import Log
from gateway.observe.rollup import Prices
from gateway.parts.keys import build_key_store
from gateway.parts.limits import LimitStores, build_limit_stores
from gateway.settings import Settings
from gateway.tenants.budgets import Budgets
from gateway.tenants.key_book import KeyBook
from gateway.tenants.key_store import KeyStore, KeyStoreFault
from gateway.tenants.key_sync import KeySync
from gateway.tenants.keys import AdminKeys, Keys
from gateway.tenants.limits import Limits
from gateway.tenants.roster import Roster
from gateway.tenants.spend import Appraiser, SpendLayer


@dataclass(frozen=True, slots=True)
class Tenancy:
    """Everything that knows tenants."""

    roster: Roster
    keys: Keys
    admin_keys: AdminKeys
    limits: Limits
    gate: AdminGate
    sync: KeySync
    routers: list[APIRouter]
    key_store: KeyStore
    budgets: Budgets
    limit_stores: LimitStores

    def spending(self, inner: Answerer, backend: Backend, settings: Settings) -> Answerer:
        """The layer that reserves and settles, around who asks the models."""
        cascade = settings.cascade
        fallbacks = {name: model.fallbacks for name, model in settings.models.items()}
        appraiser = Appraiser(backend.cards, (cascade.small, cascade.large), fallbacks)
        return SpendLayer(
            inner,
            roster=self.roster,
            limits=self.limits,
            budgets=self.budgets,
            appraiser=appraiser,
            prices=Prices(backend.cards.values(), backend.cards[cascade.large]),
        )

    def logs_content(self, unless_said: bool) -> Callable[[str], bool]:
        """Whether a tenant's prompts and answers are logged, by its name."""
        roster = self.roster

        def wanted(name: str) -> bool:
            own = roster[name].log_content
            return unless_said if own is None else own

        return wanted

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Stores are read before the first request is let in, where they can be."""
        await self.sync.turn()
        shared = self.limit_stores.shared
        tasks = [asyncio.create_task(self.sync.run()), asyncio.create_task(self.budgets.tend())]
        if shared is not None:
            tasks.append(asyncio.create_task(shared.tend()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            if shared is not None:
                await shared.close()
            await self.budgets.close()
            self.limit_stores.leases.close()
            with suppress(KeyStoreFault):
                await self.sync.write_used()
            self.key_store.close()


def build_tenancy(live: Live, log: Log) -> Tenancy:
    """Raises KeyStoreFault or LeaseStoreFault where a store's file cannot be used."""
    settings = live.settings
    roster, keys = Roster(settings.tenants), Keys(settings.tenants)
    stores = build_limit_stores(settings.limits, log)
    limits = Limits(settings.tenants, shared=stores.shared)
    admins = AdminKeys(settings.admin)
    for taker in (roster.replace, keys.replace, limits.replace):
        live.on_tenants(taker)
    live.on_admin(admins.replace)
    gate = AdminGate(admins, settings.server.host, log)
    store = build_key_store(settings.keys)
    sync = KeySync(store, keys, log)
    budgets = Budgets(stores.leases, log, settings.tenants)
    live.on_tenants(budgets.replace)
    routers = [
        admin.router(live, gate, budgets),
        admin_keys.router(live, KeyBook(store), sync, gate),
    ]
    return Tenancy(roster, keys, admins, limits, gate, sync, routers, store, budgets, stores)
