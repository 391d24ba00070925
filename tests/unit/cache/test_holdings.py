"""What is too much: the largest tenant loses, in it the largest user, of theirs the oldest."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from cache.holdings import Holdings
from cache.who import owner_of, room_of, tenant_of


def filled(*owners: str) -> Holdings[tuple[str, int]]:
    """Items (owner, number of theirs), of weight 1."""
    holdings = Holdings[tuple[str, int]]()
    count: Counter[str] = Counter()
    for owner in owners:
        holdings.add((owner, count[owner]), owner)
        count[owner] += 1
    return holdings


def test_made_up_users_count_together_to_their_tenant() -> None:
    holdings = filled("quiet", "quiet", *(f"loud/{number}" for number in range(5)))
    for number in range(3):
        assert holdings.loser() == (f"loud/{number}", 0)
        holdings.remove(holdings.loser())


def test_within_a_tenant_the_user_who_holds_most_loses_their_longest_unused() -> None:
    holdings = filled("shop/good", *["shop/evil"] * 4)
    holdings.use(("shop/evil", 0))
    lost = []
    for _ in range(3):
        lost.append(holdings.loser())
        holdings.remove(lost[-1])
    assert lost == [("shop/evil", number) for number in (1, 2, 3)]


def test_of_several_who_hold_the_same_the_longest_unused_loses() -> None:
    holdings = filled("shop/a", "shop/b", "shop/c")
    holdings.use(("shop/a", 0))
    assert holdings.loser() == ("shop/b", 0)


def test_weight_counts_and_not_the_number_of_items() -> None:
    holdings = filled("many", "many", "many", "heavy")
    holdings.weigh(("heavy", 0), 10)
    assert (holdings.loser(), holdings.total) == (("heavy", 0), 13)
    holdings.weigh(("heavy", 0), 2)
    assert (holdings.loser(), holdings.total) == (("many", 0), 5)


def test_under_any_traffic_it_is_the_largest_of_the_largest() -> None:
    rng = random.Random(3)
    holdings = Holdings[int]()
    held: dict[int, tuple[str, int]] = {}
    for step in range(4000):
        owner = f"t{rng.randrange(4)}/u{rng.randrange(5)}"
        holdings.add(step, owner, weight := rng.randrange(1, 50))
        held[step] = (owner, weight)
        known = rng.choice(list(held))
        held[known] = (held[known][0], rng.randrange(1, 50))
        holdings.weigh(known, held[known][1])
        if len(held) > 30:
            lost = holdings.loser()
            tenants: Counter[str] = Counter()
            users: dict[str, Counter[str]] = defaultdict(Counter)
            for name, weight in held.values():
                tenants[tenant_of(name)] += weight
                users[tenant_of(name)][name] += weight
            owner = held.pop(lost)[0]
            tenant = tenant_of(owner)
            assert tenants[tenant] == max(tenants.values())
            assert users[tenant][owner] == max(users[tenant].values())
            holdings.remove(lost)
    assert (len(holdings), holdings.total) == (len(held), sum(w for _, w in held.values()))
    assert len(holdings._tenants._heap) < 100


def test_nothing_is_remembered_of_who_holds_nothing() -> None:
    holdings = filled(*(f"loud/{number}" for number in range(1000)))
    for number in range(1000):
        holdings.remove((f"loud/{number}", 0))
    assert not holdings._users
    assert not holdings._tenants
    assert not holdings._lines


def test_a_user_scope_is_in_its_tenants_room_and_others_are_their_own() -> None:
    scopes = ("tenant:shop", "user:shop/ann", "user:shop/ann/b", "group:club", "public")
    assert [room_of(scope) for scope in scopes] == [
        "tenant:shop", "user:shop", "user:shop", "group:club", "public",
    ]  # fmt: skip
    assert [owner_of(scope) for scope in scopes] == [
        "shop", "shop/ann", "shop/ann/b", "group:club", "public",
    ]  # fmt: skip
