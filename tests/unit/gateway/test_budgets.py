from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from io import BytesIO

import pytest

from gateway.observe.logs import LineWriter, build_log
from gateway.settings import Tenant
from gateway.tenants.budgets import (
    LOOK_S,
    NANO,
    BudgetAway,
    Budgets,
    BudgetState,
    QuotaSpent,
    period_at,
)
from gateway.tenants.lease_line import AWAY_S
from gateway.tenants.lease_store import (
    Account,
    LeaseStoreFault,
    Move,
    Moved,
    SqliteLeaseStore,
)

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
ACME = Tenant(name="acme", budget_usd_day=1.0)
LATER = Tenant(name="acme", budget_usd_day=1.0, budget_when_away="settle_later")


class Store(SqliteLeaseStore):
    """One that can go away, before it does what it is asked or after (the reply is lost)."""

    away = ""
    asked = 0

    def move(self, account: Account, move: Move) -> Moved:
        self.asked += 1
        if self.away == "before":
            raise LeaseStoreFault("away")
        moved = super().move(account, move)
        if self.away == "after":
            raise LeaseStoreFault("the reply was lost")
        return moved


class Time:
    def __init__(self) -> None:
        self.wall, self.clock = NOON, 1000.0


@pytest.fixture
def now() -> Time:
    return Time()


@pytest.fixture
def store() -> Store:
    return Store(":memory:")


def budgets(store: Store, now: Time, tenants: tuple[Tenant, ...] = ()) -> Budgets:
    log = build_log(LineWriter(BytesIO(), every_s=60), "info", as_json=True)
    return Budgets(store, log, tenants, wall=lambda: now.wall, clock=lambda: now.clock)


async def used(some: Budgets, tenant: Tenant = ACME) -> float:
    return (await some.used(tenant))[0].used / NANO


async def test_a_reservation_is_settled_by_what_was_spent(store: Store, now: Time) -> None:
    some = budgets(store, now)
    ticket = await some.reserve(ACME, NANO // 2)
    assert await used(some) == 0.5
    ticket.settle(NANO // 10)
    ticket.settle(NANO // 2)  # once is enough
    assert await used(some) == 0.1


async def test_what_runs_at_one_time_never_exceeds_the_budget(store: Store, now: Time) -> None:
    one, two = budgets(store, now), budgets(store, now)
    tries = [some.reserve(ACME, NANO // 30) for some in (one, two) * 40]
    done = await asyncio.gather(*tries, return_exceptions=True)
    tickets = [ticket for ticket in done if not isinstance(ticket, BaseException)]
    assert all(isinstance(refused, QuotaSpent) for refused in done if refused not in tickets)
    assert 28 <= len(tickets) <= 30
    for ticket in tickets:
        ticket.settle(NANO // 30)
    await one.close()
    assert (await two.used(ACME))[0].used <= NANO


async def test_who_has_spent_it_reads_what_is_left_and_what_to_do(store: Store, now: Time) -> None:
    some = budgets(store, now)
    (await some.reserve(ACME, NANO)).settle(9 * NANO // 10)
    with pytest.raises(QuotaSpent) as raised:
        await some.reserve(ACME, NANO // 2)
    error = raised.value
    assert (error.status, error.code, error.kind) == (429, "insufficient_quota",
                                                      "insufficient_quota")  # fmt: skip
    assert "$0.100000 left of its $1 for this day" in error.message
    assert "2026-12-01 00:00 UTC" in error.message
    assert error.retry_after_s == 12 * 3600
    await some.reserve(ACME, NANO // 10)


async def test_of_two_budgets_neither_keeps_what_the_other_refused(store: Store, now: Time) -> None:
    both = Tenant(name="acme", budget_usd_day=2.0, budget_usd_month=1.0)
    some = budgets(store, now)
    with pytest.raises(QuotaSpent, match="budget_usd_month"):
        await some.reserve(both, 3 * NANO // 2)
    assert [one.used for one in await some.used(both)] == [0, 0]


async def test_most_reservations_ask_nobody(store: Store, now: Time) -> None:
    some = budgets(store, now)
    for _ in range(100):
        (await some.reserve(ACME, NANO // 1000)).settle(NANO // 1000)
    assert store.asked <= 10


async def test_an_idle_slice_goes_back_and_serves_another_gateway(store: Store, now: Time) -> None:
    one, two = budgets(store, now), budgets(store, now)
    (await one.reserve(ACME, NANO)).settle(0)
    with pytest.raises(QuotaSpent):
        await two.reserve(ACME, NANO)
    now.clock += 10
    await one.tend_once(idle_s=5.0)
    await two.reserve(ACME, NANO)


async def test_a_slice_that_nobody_needs_is_kept_for_a_minute(store: Store, now: Time) -> None:
    some = budgets(store, now)
    (await some.reserve(ACME, NANO // 100)).settle(0)
    now.clock += 59
    await some.tend_once(idle_s=5.0)
    asked = store.asked
    await some.reserve(ACME, NANO // 100)
    assert store.asked == asked
    now.clock += 61
    await some.tend_once(idle_s=5.0)
    assert store.asked == asked + 1


async def test_what_a_dead_gateway_had_leased_is_used_in_full(store: Store, now: Time) -> None:
    dead, heir = budgets(store, now), budgets(store, now)
    await dead.reserve(ACME, 9 * NANO // 10)
    del dead
    assert await used(heir) >= 0.9
    with pytest.raises(QuotaSpent):
        await heir.reserve(ACME, NANO // 5)


async def test_without_the_store_the_slice_is_spent_and_then_it_is_a_503(
    store: Store, now: Time
) -> None:
    some = budgets(store, now)
    (await some.reserve(ACME, NANO // 100)).settle(0)  # leases a slice of 1/50
    store.away = "before"
    await some.reserve(ACME, NANO // 100)
    await some.reserve(ACME, NANO // 100)
    with pytest.raises(BudgetAway) as raised:
        await some.reserve(ACME, NANO // 100)
    assert (raised.value.status, raised.value.code) == (503, "budget_store_away")
    asked = store.asked
    with pytest.raises(BudgetAway):
        await some.reserve(ACME, NANO // 100)
    assert store.asked == asked  # nobody waits for a second timeout
    assert await some.problem() is not None
    store.away = ""
    now.clock += AWAY_S
    await some.reserve(ACME, NANO // 100)
    assert await some.problem() is None


async def test_a_tenant_may_go_on_without_the_store_and_is_booked_when_it_is_back(
    store: Store, now: Time
) -> None:
    some = budgets(store, now)
    store.away = "before"
    for _ in range(3):
        (await some.reserve(LATER, NANO)).settle(NANO)
    store.away = ""
    now.clock += AWAY_S
    await some.tend_once(idle_s=5.0)
    assert await used(budgets(store, now), LATER) == 3.0
    with pytest.raises(QuotaSpent):
        await some.reserve(LATER, 1)


async def test_a_lost_reply_costs_nothing(store: Store, now: Time) -> None:
    some = budgets(store, now)
    store.away = "after"
    with pytest.raises(BudgetAway):
        await some.reserve(ACME, NANO // 2)
    store.away = ""
    now.clock += AWAY_S
    (await some.reserve(ACME, NANO // 2)).settle(NANO // 2)
    await some.close()
    assert await asyncio.to_thread(lambda: store_used(some)) == 0


def store_used(some: Budgets) -> int:
    """Free money that a closed gateway still holds."""
    return sum(pot.free for pot in some._pots.values())


async def test_a_new_day_is_a_new_budget_and_the_old_one_is_settled(
    store: Store, now: Time
) -> None:
    some = budgets(store, now)
    ticket = await some.reserve(ACME, NANO)
    now.wall += 86_400
    await some.reserve(ACME, NANO // 2)
    ticket.settle(NANO // 4)
    await some.tend_once(idle_s=5.0)
    name, ends_at = period_at(NOON, "day")
    assert store.used(Account(f"acme:{name}", NANO, ends_at)) == NANO // 4


def test_periods_end_at_midnight_utc_and_with_the_month() -> None:
    assert period_at(NOON, "day") == ("day:2026-11-30", NOON + 12 * 3600)
    assert period_at(NOON, "month") == ("month:2026-11", NOON + 12 * 3600)
    december = datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp()
    assert period_at(december, "month")[1] == datetime(2027, 1, 1, tzinfo=UTC).timestamp()


async def test_a_flood_of_refused_requests_does_not_ask_the_store(store: Store, now: Time) -> None:
    some = budgets(store, now)
    ticket = await some.reserve(ACME, NANO)
    asked = store.asked
    for _ in range(50):
        with pytest.raises(QuotaSpent):
            await some.reserve(ACME, NANO // 2)
    assert store.asked <= asked + 2
    ticket.settle(0)
    await some.reserve(ACME, NANO // 2)


@pytest.mark.parametrize("spent", [0.5, 1.5, 100.0])
async def test_a_debt_is_booked_in_one_move_before_more_is_leased(
    store: Store, now: Time, spent: float
) -> None:
    some = budgets(store, now)
    ticket = await some.reserve(ACME, NANO // 100)
    ticket.settle(round(spent * NANO))
    asked = store.asked
    if spent < 1.0:
        await some.reserve(ACME, NANO // 10)
        assert store.asked == asked + 2
        return
    with pytest.raises(QuotaSpent, match=r"has \$0\.000000 left of its \$1 "):
        await some.reserve(ACME, NANO // 10)
    assert store.asked == asked + 2
    assert await used(some) == spent


async def test_what_is_too_little_for_one_gateway_is_put_together_for_another(
    store: Store, now: Time
) -> None:
    one, two = budgets(store, now), budgets(store, now)
    first, second = await one.reserve(ACME, NANO // 2), await two.reserve(ACME, NANO // 2)
    first.settle(NANO // 4)
    second.settle(NANO // 4)
    with pytest.raises(QuotaSpent):
        await one.reserve(ACME, NANO // 3)
    await two.reserve(ACME, NANO // 2)


async def test_each_refusal_tells_what_its_own_request_may_cost(store: Store, now: Time) -> None:
    some = budgets(store, now)
    await some.reserve(ACME, 3 * NANO // 4)
    for needs in (NANO // 2, 3 * NANO // 5, 4 * NANO):
        with pytest.raises(QuotaSpent, match=rf"may cost up to \${needs / NANO:.6f}\."):
            await some.reserve(ACME, needs)


async def test_a_lowered_limit_holds_at_once(store: Store, now: Time) -> None:
    """Whatever was leased before, and whatever comes back of what was reserved before."""
    some = budgets(store, now)
    running = await some.reserve(ACME, NANO // 10)
    (await some.reserve(ACME, NANO // 2)).settle(NANO // 2)
    lower = Tenant(name="acme", budget_usd_day=0.45)
    with pytest.raises(QuotaSpent, match=r"\$0.000000 left of its \$0.45"):
        await some.reserve(lower, 1)
    running.settle(NANO // 20)
    with pytest.raises(QuotaSpent):
        await some.reserve(lower, 1)
    assert await used(some, lower) == 0.55
    await some.reserve(Tenant(name="acme", budget_usd_day=0.6), NANO // 20)


async def test_a_lowered_limit_holds_while_the_store_is_away(store: Store, now: Time) -> None:
    some = budgets(store, now)
    (await some.reserve(ACME, NANO // 2)).settle(NANO // 4)
    store.away = "before"
    with pytest.raises(BudgetAway):
        await some.reserve(Tenant(name="acme", budget_usd_day=0.3), NANO // 10)


async def test_what_was_leased_beyond_a_lowered_limit_goes_back_within_a_second(
    store: Store, now: Time
) -> None:
    some = budgets(store, now)
    (await some.reserve(ACME, NANO)).settle(NANO // 4)
    lower = Tenant(name="acme", budget_usd_day=0.5)
    await used(some, lower)
    await some.tend_once(idle_s=60.0)
    other = budgets(store, now)
    await other.reserve(lower, NANO // 5)


async def test_how_every_budget_stands_is_known_before_its_tenant_asks(
    store: Store, now: Time
) -> None:
    both = Tenant(name="acme", budget_usd_day=1.0, budget_usd_month=2.0)
    other, some = budgets(store, now), budgets(store, now, (both, Tenant(name="free")))
    (await other.reserve(both, NANO // 4)).settle(NANO // 4)
    await other.close()
    await some.look()
    assert some.states() == [
        BudgetState("acme", "day", NANO, NANO // 4, 0),
        BudgetState("acme", "month", 2 * NANO, NANO // 4, 0),
    ]
    await some.reserve(both, NANO // 100)
    day, _ = some.states()
    assert day.used == NANO // 4 + NANO // 100
    assert day.leased >= NANO // 100
    some.replace(())
    assert not some.states()


async def test_the_standing_of_budgets_is_asked_for_now_and_then(store: Store, now: Time) -> None:
    some, other = budgets(store, now, (ACME,)), budgets(store, now)
    await some.look()
    (await other.reserve(ACME, NANO // 2)).settle(NANO // 2)
    await some.look()
    assert some.states()[0].used == 0
    now.clock += LOOK_S
    await some.look()
    assert some.states()[0].used >= NANO // 2
