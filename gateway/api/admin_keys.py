"""/admin keys: create, list, rotate and revoke stored keys, as `sluice keys` does.

A key's text is in the answer to its making and nowhere else. A change holds here at once, and on
other gateways with the same store within a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from engine.contract import BadCall, Overloaded
from gateway.api.admin import no_such_tenant
from gateway.api.admin_gate import AdminGate
from gateway.live import Live
from gateway.tenants.key import Key, Minted
from gateway.tenants.key_book import GRACE_S, SHORTEST_S, KeyBook, KeyRefused
from gateway.tenants.key_store import KeyStoreFault
from gateway.tenants.key_sync import KeySync

T = TypeVar("T")


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(default="", max_length=200, description="For people: whose, what for")
    lives_s: float | None = Field(
        default=None, ge=SHORTEST_S, description="Seconds; unset: for ever"
    )


class Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid")
    grace_s: float = Field(default=GRACE_S, ge=0, description="How long the old key still opens")


class KeyOut(BaseModel):
    """A stored key. Times are seconds since the epoch."""

    id: str
    tenant: str
    name: str
    state: str = Field(description="active, expired or revoked")
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    used_at: float | None = Field(description="Last use, some seconds late")
    replaces: str | None


class MintedOut(KeyOut):
    key: str = Field(description="The key itself: shown this once")


class KeyList(BaseModel):
    keys: list[KeyOut]


def router(live: Live, book: KeyBook, sync: KeySync, gate: AdminGate) -> APIRouter:
    routes = APIRouter(prefix="/admin", tags=["admin"])
    admin = Depends(gate)

    async def change(do: Callable[[], T]) -> T:
        made = await _ask(do)
        await _ask_later(sync.pull)
        return made

    @routes.post("/tenants/{tenant}/keys", status_code=201, summary="Make a key")
    async def create(
        tenant: str, reply: Response, asked: NewKey | None = None, who: str = admin
    ) -> MintedOut:
        wanted = asked or NewKey()
        if all(one.name != tenant for one in live.settings.tenants):
            raise no_such_tenant(live, tenant)
        tenants = live.settings.tenants
        minted = await change(
            lambda: book.create(tenants, tenant, name=wanted.name, lives_s=wanted.lives_s)
        )
        gate.audit(who, "keys.create", tenant=tenant, key=minted.key.id)
        return _minted(minted, reply)

    @routes.get("/keys", summary="Stored keys, of all tenants or of one")
    async def list_keys(tenant: str | None = None, _: str = admin) -> KeyList:
        return KeyList(keys=[_shown(key) for key in await _ask(lambda: book.list(tenant))])

    @routes.post("/keys/{key_id}/rotate", status_code=201, summary="Replace a key")
    async def rotate(
        key_id: str, reply: Response, asked: Rotation | None = None, who: str = admin
    ) -> MintedOut:
        grace_s = (asked or Rotation()).grace_s
        minted = await change(lambda: book.rotate(key_id, grace_s))
        gate.audit(who, "keys.rotate", tenant=minted.key.tenant, key=key_id,
                   new_key=minted.key.id, grace_s=grace_s)  # fmt: skip
        return _minted(minted, reply)

    @routes.delete("/keys/{key_id}", summary="Revoke a key")
    async def revoke(key_id: str, who: str = admin) -> KeyOut:
        key = await change(lambda: book.revoke(key_id))
        gate.audit(who, "keys.revoke", tenant=key.tenant, key=key_id)
        return _shown(key)

    return routes


async def _ask(do: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(do)
    except KeyRefused as refused:
        raise BadCall(str(refused), code="key_refused") from None
    except KeyStoreFault as fault:
        raise Overloaded(str(fault), code="key_store_away", retry_after_s=1.0) from None


async def _ask_later(pull: Callable[[], Any]) -> None:
    """The change is made; if it cannot be read back now, the next turn will."""
    try:
        await pull()
    except KeyStoreFault:
        return


def _shown(key: Key) -> KeyOut:
    return KeyOut(**_fields(key))


def _minted(minted: Minted, reply: Response) -> MintedOut:
    reply.headers["cache-control"] = "no-store"
    return MintedOut(key=minted.text, **_fields(minted.key))


def _fields(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "state": key.state(time.time()),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "used_at": key.used_at,
        "replaces": key.replaces,
    }
