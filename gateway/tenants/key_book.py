"""What can be done with stored keys: create, list, rotate, revoke. The command line and /admin are
two faces of this.

Rotation makes a new key for the same tenant and lets the old one live for a grace, so that its
holder can change over without being locked out.

Rotations and revocations are made of what was read, and hold only if nobody changed the key in
between; else they are made again of what it is now. So what was revoked stays revoked, whoever
else is at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec

from gateway.settings import Tenant
from gateway.tenants.key import Key, Minted, mint
from gateway.tenants.key_store import Found, KeyStore

GRACE_S = 86_400.0
SHORTEST_S = 1.0
"""A key that ends before it can be sent is a mistake."""
LONGEST_S = 100 * 365 * 86_400.0
"""No longer life or grace: dates beyond cannot be shown, and "for ever" has a name of its own."""


class KeyRefused(Exception):
    """It cannot be done; the text says why and what to do instead."""


class KeyBook:
    """Blocking, like its store, whose KeyStoreFault passes through."""

    def __init__(self, store: KeyStore, wall: Callable[[], float] = time.time) -> None:
        self._store = store
        self._wall = wall

    def create(
        self,
        tenants: Iterable[Tenant],
        tenant: str,
        *,
        name: str = "",
        lives_s: float | None = None,
    ) -> Minted:
        """`tenants`: those in force. Raises KeyRefused."""
        _require_keyed(tenants, tenant)
        if lives_s is not None and not SHORTEST_S <= lives_s <= LONGEST_S:
            raise KeyRefused(
                "A key must live for at least 1 s and at most 100 years; leave its lifetime out "
                "for ever."
            )
        if not name.isprintable():
            raise KeyRefused(
                "A key's name is shown in lists, so that it must be printable characters alone: "
                "no line breaks, control characters or invisible marks. Choose another."
            )
        now = self._wall()
        expires_at = None if lives_s is None else now + lives_s
        minted = mint(tenant, now, name=name, expires_at=expires_at)
        self._store.put([minted.key])
        return minted

    def list(self, tenant: str | None = None) -> list[Key]:
        """All keys, revoked and expired ones included; those of a tenant if one is named."""
        return [key for key in self._store.all() if tenant in (None, key.tenant)]

    def rotate(self, key_id: str, grace_s: float = GRACE_S) -> Minted:
        """A new key in place of one that still lives `grace_s`. Raises KeyRefused."""
        if not 0 <= grace_s <= LONGEST_S:
            raise KeyRefused(
                "The grace must be between 0 s, which ends the old key at once, and 100 years."
            )
        while True:
            found = self._active(key_id)
            old, minted = self._rotated(found.key, grace_s)
            if self._store.put([old, minted.key], found):
                return minted

    def _rotated(self, old: Key, grace_s: float) -> tuple[Key, Minted]:
        """The old key with its end, and the new one."""
        now = self._wall()
        lives_s = self._lives_s(old)
        minted = mint(
            old.tenant,
            now,
            name=old.name,
            expires_at=None if lives_s is None else now + lives_s,
            replaces=old.id,
        )
        ends_at = now + grace_s if old.expires_at is None else min(now + grace_s, old.expires_at)
        return msgspec.structs.replace(old, expires_at=ends_at), minted

    def _lives_s(self, key: Key) -> float | None:
        """How long a key of this family lives; None: for ever. One that was rotated ends when its
        grace does, so that it is read from the one that took its place and was not rotated."""
        if key.expires_at is None:
            return None
        heirs: dict[str | None, Key] = {}
        for one in self._store.all():
            heirs.setdefault(one.replaces, one)
        while key.id in heirs:
            key = heirs[key.id]
        return None if key.expires_at is None else key.expires_at - key.created_at

    def revoke(self, key_id: str) -> Key:
        """The key, which opens nothing any more. Raises KeyRefused."""
        while True:
            found = self._known(key_id)
            if found.key.revoked_at is not None:
                return found.key
            revoked = msgspec.structs.replace(found.key, revoked_at=self._wall())
            if self._store.put([revoked], found):
                return revoked

    def _known(self, key_id: str) -> Found:
        found = self._store.find(key_id)
        if found is None:
            raise KeyRefused(
                f"There is no stored key {key_id!r}; `sluice keys list` shows their ids (the "
                "middle of sk-<id>-<secret>). Keys in sluice.toml are changed there."
            )
        return found

    def _active(self, key_id: str) -> Found:
        found = self._known(key_id)
        state = found.key.state(self._wall())
        if state != "active":
            raise KeyRefused(f"Key {key_id} is {state}; create a new one instead.")
        return found


def _require_keyed(tenants: Iterable[Tenant], name: str) -> None:
    by_name = {tenant.name: tenant for tenant in tenants}
    tenant = by_name.get(name)
    if tenant is None:
        known = ", ".join(by_name)
        raise KeyRefused(f"There is no tenant {name!r} in the settings; there are: {known}.")
    if not tenant.asks_for_key:
        raise KeyRefused(
            f"Tenant {name!r} asks for no key, so that a key would keep nobody out; set "
            "`stored_keys = true` in its [[tenants]] table first."
        )
