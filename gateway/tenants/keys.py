"""Who is asking: from a bearer key to a tenant, in O(1).

Only SHA-256 hashes of keys are stored. A lookup hashes the given key and asks a dict for the
digest. That is not a constant-time comparison of the key, and need not be one: what is compared is
a digest, and who cannot invert SHA-256 cannot steer how much of a digest agrees. Keys are long and
random, so a slow password hash would only cost the honest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from gateway.errors import Headers, Unauthenticated
from gateway.settings import Tenant

_BEARER = b"bearer "


class Keys:
    """Tenants by the digest of their keys. Owned by the event loop's thread."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._by_digest: dict[bytes, Tenant] = {}
        self._keyless: Tenant | None = None
        self.replace(tenants)

    def replace(self, tenants: Iterable[Tenant]) -> None:
        tenants = tuple(tenants)
        self._by_digest = {bytes.fromhex(key): tenant for tenant in tenants for key in tenant.keys}
        self._keyless = next((tenant for tenant in tenants if not tenant.keys), None)

    def tenant(self, authorization: bytes | None) -> Tenant:
        """The tenant that owns the key of an Authorization header; raises Unauthenticated.

        Where no tenant has a key (loopback only, see gateway/verify.py) any key is let in, because
        SDKs insist on sending one. As soon as one has, a key that nobody has is an error: a typo
        must not turn a customer into the keyless tenant.
        """
        if self._keyless is not None and (authorization is None or not self._by_digest):
            return self._keyless
        if authorization is None:
            raise Unauthenticated("A key is needed: send `Authorization: Bearer KEY`.",
                                  code="missing_api_key")  # fmt: skip
        if authorization[:7].lower() != _BEARER:
            raise Unauthenticated("Send the key as `Authorization: Bearer KEY`.",
                                  code="invalid_api_key")  # fmt: skip
        found = self._by_digest.get(hashlib.sha256(authorization[7:].strip()).digest())
        if found is None:
            raise Unauthenticated("This key is not known; check it, or ask the operator for one.",
                                  code="invalid_api_key")  # fmt: skip
        return found


class AdminKeys:
    """Who may see the dashboard and use /admin: those with an admin key, and where none is
    configured (the dashboard: in any case) callers on this machine."""

    def __init__(self, hashes: Iterable[str] = ()) -> None:
        self._digests: frozenset[bytes] = frozenset()
        self.replace(hashes)

    def replace(self, hashes: Iterable[str]) -> None:
        self._digests = frozenset(bytes.fromhex(one) for one in hashes)

    @property
    def any(self) -> bool:
        return bool(self._digests)

    def who(self, headers: Headers) -> str | None:
        """The first digits of the hash of the admin key that was sent; None without a good one."""
        authorization = next((value for name, value in headers if name == b"authorization"), b"")
        if authorization[:7].lower() != _BEARER:
            return None
        digest = hashlib.sha256(authorization[7:].strip()).digest()
        return digest.hex()[:8] if digest in self._digests else None

    def allows(self, headers: Headers, client_is_local: bool) -> bool:
        return client_is_local or self.who(headers) is not None
