"""Who is asking: from a bearer key to a tenant, in O(1) and without asking anybody.

Two kinds of keys. Those in `sluice.toml` are hashes of whole keys of any form: the given key is
hashed and a dict is asked for the digest. That is not a constant-time comparison of the key, and
need not be one: what is compared is a digest, and who cannot invert SHA-256 cannot steer how much
of a digest agrees. Stored keys (tenants/key.py) are found by their public id, which is no secret,
and their secret's digest is compared in constant time. Keys are long and random, so a slow password
hash would only cost the honest.

When a stored key was last used is noted here (`used`) and written down by tenants/key_sync.py.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable

from engine.contract import Overloaded
from gateway.errors import Headers, Unauthenticated
from gateway.settings import Admin, Tenant
from gateway.tenants.key import PREFIX, Key

_BEARER = b"bearer "
_PREFIX = PREFIX.encode()


class Keys:
    """Tenants by their keys. Owned by the event loop's thread."""

    def __init__(self, tenants: Iterable[Tenant], wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._by_digest: dict[bytes, Tenant] = {}
        self._by_name: dict[str, Tenant] = {}
        self._keyless: Tenant | None = None
        self._stored: dict[bytes, Key] = {}
        self._asked = False
        """Whether some tenant's callers need a key."""
        self.used: dict[str, float] = {}
        """When stored keys were used, by id, since it was last written down."""
        self.complete = True
        """Whether all stored keys are known here; false until a store was first read."""
        self.replace(tenants)

    def replace(self, tenants: Iterable[Tenant]) -> None:
        """Let these tenants in, and no others."""
        tenants = tuple(tenants)
        self._by_digest = {bytes.fromhex(key): tenant for tenant in tenants for key in tenant.keys}
        self._by_name = {tenant.name: tenant for tenant in tenants}
        self._keyless = next((tenant for tenant in tenants if not tenant.asks_for_key), None)
        self._asked = any(tenant.asks_for_key for tenant in tenants)

    def learn(self, keys: Iterable[Key], whole: bool = False) -> None:
        """Take over what changed in the store; `whole`: these are all there are."""
        if whole:
            self._stored.clear()
        for key in keys:
            self._stored[key.id.encode()] = key
        self.complete = True

    def tenant(self, authorization: bytes | None) -> Tenant:
        """The tenant that owns the key of an Authorization header; raises Unauthenticated.

        Where no tenant asks for a key (loopback only, see gateway/verify/) any key is let in,
        because SDKs insist on sending one. As soon as one does, a key that nobody has is an error:
        a typo must not turn a customer into the keyless tenant.
        """
        if self._keyless is not None and (authorization is None or not self._asked):
            return self._keyless
        if authorization is None:
            raise Unauthenticated("A key is needed: send `Authorization: Bearer KEY`.",
                                  code="missing_api_key")  # fmt: skip
        if authorization[:7].lower() != _BEARER:
            raise Unauthenticated("Send the key as `Authorization: Bearer KEY`.",
                                  code="invalid_api_key")  # fmt: skip
        given = authorization[7:].strip()
        if not given:
            raise Unauthenticated("The key is empty: send `Authorization: Bearer KEY`.",
                                  code="missing_api_key")  # fmt: skip
        parts = given.split(b"-", 2)
        if len(parts) == 3 and parts[0] == _PREFIX:
            stored = self._stored.get(parts[1])
            if stored is not None:
                return self._owner(stored, parts[2])
        found = self._by_digest.get(hashlib.sha256(given).digest())
        if found is not None:
            return found
        if not self.complete:
            raise Overloaded(
                "The key store has not answered yet, so that this key cannot be checked; send the "
                "request again shortly.",
                code="key_store_away",
                retry_after_s=1.0,
            )
        raise _unknown()

    def _owner(self, key: Key, secret: bytes) -> Tenant:
        """Whose it is; the reason why it opens nothing is told only to who knows the secret."""
        if not key.opens_with(secret):
            raise _unknown()
        now = self._wall()
        state = key.state(now)
        if state != "active":
            raise Unauthenticated(
                f"Key {key.id} is {state}; ask the operator for a new one.", code=f"{state}_api_key"
            )
        tenant = self._by_name.get(key.tenant)
        if tenant is None:
            raise Unauthenticated(
                f"Key {key.id} belongs to a tenant that is not served any more; ask the operator.",
                code="invalid_api_key",
            )
        self.used[key.id] = now
        return tenant


def _unknown() -> Unauthenticated:
    return Unauthenticated(
        "This key is not known; check it, or ask the operator for one.", code="invalid_api_key"
    )


class AdminKeys:
    """Who may see the dashboard and use /admin: those with an admin key, and where none is
    configured callers on this machine (api/admin_gate.py). /metrics has keys of its own, too."""

    def __init__(self, admin: Admin) -> None:
        self.replace(admin)

    def replace(self, admin: Admin) -> None:
        self._digests = frozenset(bytes.fromhex(one) for one in admin.keys)
        self._metrics = frozenset(bytes.fromhex(one) for one in admin.metrics_keys)
        self._open_metrics = admin.open_metrics

    @property
    def any(self) -> bool:
        return bool(self._digests)

    def who(self, headers: Headers) -> str | None:
        """The first digits of the hash of the admin key that was sent; None without a good one."""
        digest = _digest_of(headers)
        return digest.hex()[:8] if digest is not None and digest in self._digests else None

    def may_read_metrics(self, headers: Headers) -> bool:
        """Whoever may be an admin may, too."""
        return self._open_metrics or _digest_of(headers) in self._metrics


def _digest_of(headers: Headers) -> bytes | None:
    """Of the bearer key that was sent, if one was."""
    authorization = next((value for name, value in headers if name == b"authorization"), b"")
    given = authorization[7:].strip()
    if authorization[:7].lower() != _BEARER or not given:
        return None
    return hashlib.sha256(given).digest()
