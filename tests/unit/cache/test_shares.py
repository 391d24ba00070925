"""A memory that is full takes from whoever holds most."""

from __future__ import annotations

import random
from collections import Counter

from cache.shares import Shares


def test_one_who_is_alone_has_all_the_room_and_loses_the_oldest() -> None:
    shares = Shares[int, str](3)
    for key in range(5):
        shares.put("ann", key, f"value {key}")
    assert [shares.get(key) for key in range(5)] == [None, None, "value 2", "value 3", "value 4"]


def test_what_is_put_again_is_the_newest_and_counts_once() -> None:
    shares = Shares[str, int](2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        shares.put("ann", key, value)
    assert (shares.get("a"), shares.get("b"), shares.get("c")) == (3, None, 4)


def test_a_flood_leaves_the_others_their_share() -> None:
    shares = Shares[tuple[str, int], int](12)
    for name in ("ann", "bob"):
        for number in range(4):
            shares.put(name, (name, number), number)
    for number in range(1000):
        shares.put("loud", ("loud", number), number)
    kept = {name: [shares.get((name, n)) for n in range(4)] for name in ("ann", "bob")}
    assert kept == {"ann": [0, 1, 2, 3], "bob": [0, 1, 2, 3]}
    assert [shares.get(("loud", number)) for number in range(996, 1000)] == [996, 997, 998, 999]


def test_under_any_traffic_only_the_largest_holder_loses_and_only_its_oldest() -> None:
    rng = random.Random(7)
    shares = Shares[int, str](20)
    held: list[tuple[str, int]] = []
    for key in range(3000):
        holder = rng.choice("aaaaaabbbcd")
        shares.put(holder, key, holder)
        held.append((holder, key))
        lost = [one for one in held if shares.get(one[1]) is None]
        counts = Counter(name for name, _ in held)
        for name, old in lost:
            assert counts[name] == max(counts.values())
            assert old == min(number for who, number in held if who == name)
            held.remove((name, old))
        if rng.random() < 0.2:
            gone = held.pop(rng.randrange(len(held)))
            assert shares.pop(gone[1]) == gone[0]
        assert len(shares) == len(held) <= 20


def test_what_is_not_there_is_none() -> None:
    shares = Shares[str, int](1)
    assert (shares.get("a"), shares.pop("a"), len(shares)) == (None, None, 0)
