from __future__ import annotations

import hashlib

import msgspec
import pytest

from engine.contract import Overloaded
from gateway.errors import Unauthenticated
from gateway.settings import Admin, Tenant
from gateway.tenants.key import Minted, mint
from gateway.tenants.keys import AdminKeys, Keys


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


A = Tenant(name="a", keys=(sha("sk-a"), sha("sk-a2")))
OPEN = Tenant(name="open")


def test_each_key_of_a_tenant_finds_it() -> None:
    keys = Keys([A])
    assert keys.tenant(b"Bearer sk-a") is A
    assert keys.tenant(b"bearer sk-a2") is A


@pytest.mark.parametrize("given", [None, b"Bearer wrong", b"Bearer ", b"Basic sk-a", b"sk-a"])
def test_no_key_or_a_wrong_one_is_a_401(given: bytes | None) -> None:
    with pytest.raises(Unauthenticated) as raised:
        Keys([A]).tenant(given)
    assert raised.value.status == 401


def test_where_nobody_has_a_key_any_key_is_let_in() -> None:
    assert Keys([OPEN]).tenant(b"Bearer sk-unused") is OPEN
    assert Keys([OPEN]).tenant(None) is OPEN


def test_a_typo_does_not_turn_a_customer_into_the_keyless_tenant() -> None:
    keys = Keys([A, OPEN])
    assert keys.tenant(None) is OPEN
    assert keys.tenant(b"Bearer sk-a") is A
    with pytest.raises(Unauthenticated):
        keys.tenant(b"Bearer sk-typo")


def test_an_admin_is_known_by_the_first_digits_of_the_hash_of_a_key() -> None:
    admin = AdminKeys(Admin(keys=(sha("adm"),)))
    assert admin.who([(b"authorization", b"Bearer adm")]) == sha("adm")[:8]
    assert admin.who([(b"authorization", b"Bearer no")]) is None
    assert admin.who([]) is None


def test_nothing_at_all_is_no_key_whatever_hashes_are_listed() -> None:
    nothing = [(b"authorization", b"Bearer  ")]
    admin = AdminKeys(Admin(keys=(sha(""),), metrics_keys=(sha(""),)))
    assert admin.who(nothing) is None
    assert not admin.may_read_metrics(nothing)
    with pytest.raises(Unauthenticated, match="empty"):
        Keys([Tenant(name="careless", keys=(sha(""),))]).tenant(b"Bearer ")


STORED = Tenant(name="acme", stored_keys=True)


def stored(now: float = 0.0, **more: object) -> tuple[Keys, Minted]:
    minted = mint("acme", 0.0, **more)  # type: ignore[arg-type]
    keys = Keys([STORED], wall=lambda: now)
    keys.learn([minted.key])
    return keys, minted


def code_of(keys: Keys, text: str) -> str | None:
    with pytest.raises(Unauthenticated) as raised:
        keys.tenant(f"Bearer {text}".encode())
    return raised.value.code


def test_a_key_is_a_public_id_and_a_secret_of_which_only_the_hash_is_kept() -> None:
    keys, minted = stored()
    prefix, key_id, secret = minted.text.split("-", 2)
    assert (prefix, key_id) == ("sk", minted.key.id)
    assert minted.key.secret_sha256 == sha(secret)
    assert secret not in repr(minted.key)
    assert keys.tenant(f"Bearer {minted.text}".encode()) is STORED
    assert keys.used == {key_id: 0.0}


def test_a_right_id_with_a_wrong_secret_opens_nothing_and_tells_nothing() -> None:
    keys, minted = stored(now=9.0, expires_at=1.0)
    assert code_of(keys, f"sk-{minted.key.id}-wrong") == "invalid_api_key"
    assert code_of(keys, f"sk-{minted.key.id}-") == "invalid_api_key"
    assert code_of(keys, f"sk-{minted.key.id}") == "invalid_api_key"
    assert keys.used == {}


def test_an_expired_key_and_a_revoked_one_say_so_to_who_holds_them() -> None:
    keys, minted = stored(now=2.0, expires_at=2.0)
    assert code_of(keys, minted.text) == "expired_api_key"
    keys.learn([msgspec.structs.replace(minted.key, revoked_at=1.0)])
    assert code_of(keys, minted.text) == "revoked_api_key"


def test_a_tenant_with_stored_keys_is_never_open_not_even_without_a_key_left() -> None:
    assert code_of(Keys([STORED]), "sk-any") == "invalid_api_key"
    with pytest.raises(Unauthenticated):
        Keys([STORED]).tenant(None)


def test_a_stored_key_opens_beside_static_ones_until_it_is_revoked() -> None:
    """`stored_keys` asks for a key; what closes one is its revocation."""
    minted = mint("a", 1.0)
    keys = Keys([A])
    keys.learn([minted.key])
    assert keys.tenant(b"Bearer " + minted.text.encode()) is A
    assert keys.tenant(b"Bearer sk-a") is A
    keys.learn([msgspec.structs.replace(minted.key, revoked_at=2.0)])
    with pytest.raises(Unauthenticated, match="is revoked"):
        keys.tenant(b"Bearer " + minted.text.encode())


def test_the_keys_of_a_tenant_that_was_removed_open_nothing() -> None:
    keys, minted = stored()
    keys.replace([A])
    assert code_of(keys, minted.text) == "invalid_api_key"


def test_until_the_store_was_read_an_unknown_key_is_a_503_and_not_a_401() -> None:
    keys = Keys([A, STORED])
    keys.complete = False
    with pytest.raises(Overloaded):
        keys.tenant(b"Bearer sk-0011-secret")
    assert keys.tenant(b"Bearer sk-a") is A
    keys.learn([])
    assert code_of(keys, "sk-0011-secret") == "invalid_api_key"
