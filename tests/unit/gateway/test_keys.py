from __future__ import annotations

import hashlib

import pytest

from gateway.errors import Unauthenticated
from gateway.settings import Tenant
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


def test_an_admin_is_local_or_has_a_key() -> None:
    admin = AdminKeys([sha("adm")])
    assert admin.allows([], client_is_local=True)
    assert admin.allows([(b"authorization", b"Bearer adm")], client_is_local=False)
    assert not admin.allows([(b"authorization", b"Bearer no")], client_is_local=False)
    assert not admin.allows([], client_is_local=False)
