"""Tenants → who they are, what they may, and the stores behind it; live while serving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi import APIRouter

from gateway.api import admin, admin_keys
from gateway.api.admin_gate import AdminGate
from gateway.live import Live
from gateway.observe.logs import Log
from gateway.parts.keys import build_key_store
from gateway.tenants.key_book import KeyBook
from gateway.tenants.key_store import KeyStore, KeyStoreFault
from gateway.tenants.key_sync import KeySync
from gateway.tenants.keys import AdminKeys, Keys
from gateway.tenants.limits import Limits
from gateway.tenants.roster import Roster


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

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Stores are read before the first request is let in, where they can be."""
        await self.sync.turn()
        syncing = asyncio.create_task(self.sync.run())
        try:
            yield
        finally:
            syncing.cancel()
            with suppress(asyncio.CancelledError):
                await syncing
            with suppress(KeyStoreFault):
                await self.sync.write_used()
            self.key_store.close()


def build_tenancy(live: Live, log: Log) -> Tenancy:
    """Raises KeyStoreFault where the key store's file cannot be used."""
    settings = live.settings
    roster, keys = Roster(settings.tenants), Keys(settings.tenants)
    limits, admins = Limits(settings.tenants), AdminKeys(settings.admin.keys)
    for taker in (roster.replace, keys.replace, limits.replace):
        live.on_tenants(taker)
    live.on_admin_keys(admins.replace)
    gate = AdminGate(admins, settings.server.host, log)
    store = build_key_store(settings.keys)
    sync = KeySync(store, keys, log)
    routers = [
        admin.router(live, gate),
        admin_keys.router(live, KeyBook(store), sync, gate),
    ]
    return Tenancy(roster, keys, admins, limits, gate, sync, routers, store)
