"""What every store of keys promises: SQLite, and a Redis that gateways share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.settings import Tenant
from gateway.tenants.key import Key, mint
from gateway.tenants.key_book import KeyBook, KeyRefused
from gateway.tenants.key_store import Changes, Found, KeyStore, KeyStoreFault, SqliteKeyStore
from gateway.tenants.key_store_redis import RedisKeyStore
from tests.support.redis_server import RedisServer
from tests.support.shared import PATIENT_S

TENANTS = (Tenant(name="acme", stored_keys=True), Tenant(name="open"))
Open = Callable[[], KeyStore]


@pytest.fixture(params=["sqlite", "redis7", "redis8"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store again and again, as several processes do."""
    stores: list[KeyStore] = []
    server: RedisServer | None = None
    if request.param != "sqlite":
        server = request.getfixturevalue(request.param)
        server.client.flushall()

    def open_one() -> KeyStore:
        store = (
            RedisKeyStore(server.url, PATIENT_S) if server else SqliteKeyStore(tmp_path / "keys.db")
        )
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


def key(name: str, at: float = 1.0) -> Key:
    return mint("acme", at, name=name).key


def test_what_one_puts_another_reads(opened: Open) -> None:
    one, two = opened(), opened()
    first, second = key("a", 1.0), key("b", 2.0)
    one.put([second, first])
    assert two.all() == [first, second]
    found = two.find(first.id)
    assert found is not None
    assert found.key == first
    assert two.find("nobody") is None


def test_changes_are_told_once_and_newest(opened: Open) -> None:
    one, two = opened(), opened()
    book = KeyBook(one, wall=lambda: 5.0)
    made = book.create(TENANTS, "acme").key
    seen = two.changes(0)
    assert seen.keys == [made]
    assert two.changes(seen.version).keys == []
    revoked = book.revoke(made.id)
    later = two.changes(seen.version)
    assert later.keys == [revoked]
    assert later.version > seen.version
    assert not later.whole


def test_a_store_that_went_back_is_read_whole(opened: Open) -> None:
    store = opened()
    store.put([key("a")])
    changes = store.changes(1000)
    assert changes.whole
    assert len(changes.keys) == 1


def test_last_use_is_kept_and_is_no_change(opened: Open) -> None:
    store = opened()
    made = key("a")
    store.put([made])
    version = store.changes(0).version
    store.note_used({made.id: 77.0})
    found = store.find(made.id)
    assert found is not None
    assert found.key.used_at == 77.0
    assert store.changes(version).keys == []


class Meanwhile:
    """A store in which somebody else is quicker: `then` happens once, between the first read of a
    key and whatever is made of it."""

    def __init__(self, inner: KeyStore, then: Callable[[], object]) -> None:
        self._inner = inner
        self._then: list[Callable[[], object]] = [then]

    def find(self, key_id: str) -> Found | None:
        found = self._inner.find(key_id)
        while self._then:
            self._then.pop()()
        return found

    def put(self, keys: Iterable[Key], unless_changed: Found | None = None) -> bool:
        return self._inner.put(keys, unless_changed)

    def all(self) -> list[Key]:
        return self._inner.all()

    def changes(self, since: int) -> Changes:
        return self._inner.changes(since)

    def note_used(self, when: Mapping[str, float]) -> None:
        self._inner.note_used(when)

    def close(self) -> None:
        self._inner.close()


def test_a_key_that_was_changed_since_it_was_read_is_not_written(opened: Open) -> None:
    one, two = opened(), opened()
    one.put([key("a")])
    (made,) = one.all()
    found = one.find(made.id)
    assert found is not None
    assert two.put([made], found)
    version = two.changes(0).version
    assert not one.put([key("b"), made], found)
    assert one.all() == [made]
    assert two.changes(version).keys == []


def test_a_use_that_is_noted_meanwhile_is_no_change(opened: Open) -> None:
    one, two = opened(), opened()
    made = KeyBook(one).create(TENANTS, "acme").key
    book = KeyBook(Meanwhile(one, lambda: two.note_used({made.id: 77.0})))
    assert book.revoke(made.id).revoked_at is not None


def test_a_rotation_beside_a_revocation_does_not_open_the_key_again(opened: Open) -> None:
    one, two = opened(), opened()
    made = KeyBook(one).create(TENANTS, "acme").key
    slow = KeyBook(Meanwhile(one, lambda: KeyBook(two).revoke(made.id)))
    with pytest.raises(KeyRefused, match="is revoked; create a new one"):
        slow.rotate(made.id)
    (kept,) = two.all()
    assert kept.revoked_at is not None


def test_a_revocation_beside_a_rotation_holds_and_keeps_its_end(opened: Open) -> None:
    now = 100.0
    one, two = opened(), opened()
    made = KeyBook(one, lambda: now).create(TENANTS, "acme").key
    quick = KeyBook(two, lambda: now)
    slow = KeyBook(Meanwhile(one, lambda: quick.rotate(made.id, grace_s=10.0)), lambda: now)
    assert slow.revoke(made.id).revoked_at == now
    kept = {one.id: one for one in quick.list()}
    assert (kept.pop(made.id).expires_at, [one.replaces for one in kept.values()]) == (
        110.0, [made.id],
    )  # fmt: skip


def test_a_rotation_beside_one_that_ended_the_key_does_not_open_it_again(opened: Open) -> None:
    one, two = opened(), opened()
    made = KeyBook(one).create(TENANTS, "acme").key
    slow = KeyBook(Meanwhile(one, lambda: KeyBook(two).rotate(made.id, grace_s=0.0)))
    with pytest.raises(KeyRefused, match="is expired; create a new one"):
        slow.rotate(made.id)


def test_once_a_revocation_is_acknowledged_nobody_opens_the_key_again(opened: Open) -> None:
    """Real threads, each with a connection of its own."""
    stores = [opened() for _ in range(3)]
    books = [KeyBook(store) for store in stores]
    for _ in range(25):
        made = books[0].create(TENANTS, "acme").key
        start = threading.Barrier(3)

        def rotate(book: KeyBook, key_id: str, start: threading.Barrier) -> None:
            start.wait()
            with suppress(KeyRefused):
                book.rotate(key_id)

        threads = [
            threading.Thread(target=rotate, args=(book, made.id, start)) for book in books[1:]
        ]
        for thread in threads:
            thread.start()
        start.wait()
        revoked = books[0].revoke(made.id)
        for thread in threads:
            thread.join()
        found = stores[0].find(made.id)
        assert found is not None
        assert revoked.revoked_at == found.key.revoked_at is not None


def test_a_rotated_key_lives_for_its_grace_and_no_longer_than_it_would_have(opened: Open) -> None:
    now = 100.0
    book = KeyBook(opened(), wall=lambda: now)
    for lives_s, ends_at in ((None, 110.0), (4.0, 104.0)):
        old = book.create(TENANTS, "acme", name="ci", lives_s=lives_s).key
        new = book.rotate(old.id, grace_s=10.0).key
        assert (new.replaces, new.name, new.tenant) == (old.id, "ci", "acme")
        kept = next(one for one in book.list() if one.id == old.id)
        assert kept.expires_at == ends_at


@pytest.mark.parametrize("lives_s", [None, 1000.0])
def test_the_end_that_a_rotation_sets_is_no_lifetime(opened: Open, lives_s: float | None) -> None:
    now = 100.0
    book = KeyBook(opened(), wall=lambda: now)
    old = book.create(TENANTS, "acme", lives_s=lives_s).key
    first = book.rotate(old.id, grace_s=50.0).key
    now = 110.0
    again = book.rotate(old.id, grace_s=50.0).key
    next_one = book.rotate(first.id, grace_s=5.0).key
    now = 112.0
    another = book.rotate(first.id, grace_s=5.0).key
    for made in (first, again, next_one, another):
        expected = None if lives_s is None else made.created_at + lives_s
        assert made.expires_at == expected


def test_what_makes_no_sense_is_refused_with_the_remedy(opened: Open) -> None:
    book = KeyBook(opened())
    with pytest.raises(KeyRefused, match="there are: acme, open"):
        book.create(TENANTS, "nobody")
    with pytest.raises(KeyRefused, match="stored_keys = true"):
        book.create(TENANTS, "open")
    with pytest.raises(KeyRefused, match="sluice keys list"):
        book.revoke("nobody")
    made = book.create(TENANTS, "acme").key
    book.revoke(made.id)
    with pytest.raises(KeyRefused, match="is revoked; create a new one"):
        book.rotate(made.id)


def test_a_redis_that_is_away_is_a_fault_and_not_a_hang() -> None:
    store = RedisKeyStore("redis://127.0.0.1:1/0")
    with pytest.raises(KeyStoreFault, match=r"\[keys\]"):
        store.changes(0)
    store.close()


def test_a_file_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyStoreFault, match="may be written"):
        SqliteKeyStore(tmp_path / "file" / "keys.db")
