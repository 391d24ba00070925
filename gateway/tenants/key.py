"""One key: `sk-<public id>-<secret>`.

The public id names the key in lists, logs and commands; the secret is 256 random bits, shown once
and kept by nobody here. What is stored is its SHA-256: a slow password hash is for what people
choose, and would cost every request milliseconds for nothing. Comparison takes the same time
wherever two digests begin to differ.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

import msgspec

PREFIX = "sk"
_ID_BYTES = 6
_SECRET_BYTES = 32


class Key(msgspec.Struct, frozen=True):
    """A stored key. Times are seconds since the epoch. `replaces` is the id it was rotated from."""

    id: str
    tenant: str
    secret_sha256: str
    created_at: float
    name: str = ""
    expires_at: float | None = None
    revoked_at: float | None = None
    used_at: float | None = None
    replaces: str | None = None

    def opens_with(self, secret: bytes) -> bool:
        return hmac.compare_digest(hashlib.sha256(secret).digest(), self.digest)

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.secret_sha256)

    def state(self, now: float) -> str:
        """active | expired | revoked"""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


class Minted(msgspec.Struct, frozen=True):
    """A new key, and its text, which is nowhere else."""

    key: Key
    text: str


def mint(
    tenant: str,
    now: float,
    *,
    name: str = "",
    expires_at: float | None = None,
    replaces: str | None = None,
) -> Minted:
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    key = Key(
        id=secrets.token_hex(_ID_BYTES),
        tenant=tenant,
        secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=now,
        name=name,
        expires_at=expires_at,
        replaces=replaces,
    )
    return Minted(key, f"{PREFIX}-{key.id}-{secret}")
