"""Rates and slots that gateways count together: a store in memory, and clocks that are set."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract import TooMany
from gateway.observe.logs import LineWriter, build_log
from gateway.parts.limits import SharedLimits
from gateway.settings import Tenant
from gateway.tenants.lease_line import AWAY_S
from gateway.tenants.lease_store import Account, LeaseStoreFault, Move, Moved, SqliteLeaseStore
from gateway.tenants.limits import Limits
from gateway.tenants.shared_rates import RateStore
from tests.support.shared import PATIENT_S
from tests.support.speakers import eventually


class Store(SqliteLeaseStore):
    """With slots, and one that can be away."""

    away = False
    asked = 0

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.slots: dict[str, int] = {}

    def move(self, account: Account, move: Move) -> Moved:
        self._look()
        return super().move(account, move)

    def used(self, account: Account) -> int:
        self._look()
        return super().used(account)

    def hold(self, name: str, holder: str, *, least: int, wanted: int, limit: int) -> int:
        self._look()
        others = sum(held for one, held in self.slots.items() if one != holder)
        self.slots[holder] = max(least, min(wanted, limit - others))
        return self.slots[holder]

    def _look(self) -> None:
        self.asked += 1
        if self.away:
            raise LeaseStoreFault("away")


class Clock:
    def __init__(self, now: float = 6_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


LOG = build_log(LineWriter(BytesIO(), every_s=60), "info", as_json=True)


class Gateway:
    def __init__(self, store: Store, clock: Clock, **policy: int) -> None:
        self.shared = SharedLimits(RateStore(store, LOG, wall=clock, clock=clock), store)
        self.limits = Limits([Tenant(name="t", **policy)], clock, self.shared)  # type: ignore[arg-type]

    async def lets_in(self) -> bool:
        try:
            await self.limits.admit("t")
        except TooMany:
            return False
        return True

    async def take(self, tokens: int) -> Callable[[int], None] | None:
        try:
            taken = await self.limits.admit_tokens("t", tokens)
        except TooMany:
            return None
        assert taken is not None
        return taken.settle


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_two_gateways_let_in_one_limit_and_not_two(store: Store, clock: Clock) -> None:
    one, two = Gateway(store, clock, rpm=100), Gateway(store, clock, rpm=100)
    tries = [gateway.lets_in() for gateway in (one, two) * 120]
    assert sum(await asyncio.gather(*tries)) == 100


async def test_most_requests_ask_nobody(store: Store, clock: Clock) -> None:
    one = Gateway(store, clock, rpm=10_000)
    for _ in range(1000):
        assert await one.lets_in()
    assert store.asked <= 10


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 25.0)), min_size=1, max_size=150),
)
def test_together_they_keep_the_window_whoever_is_asked_and_when(
    rpm: int, arrivals: list[tuple[int, float]]
) -> None:
    """In each minute of the clock no more than the limit, less what the minute before still
    weighs; and in no 60 seconds twice the limit."""
    asyncio.run(_keep_the_window(rpm, arrivals))


async def _keep_the_window(rpm: int, arrivals: list[tuple[int, float]]) -> None:
    store, clock = Store(), Clock()
    gateways = [Gateway(store, clock, rpm=rpm) for _ in range(3)]
    let_in: list[float] = []
    for which, gap in arrivals:
        clock.now += gap
        if await gateways[which].lets_in():
            let_in.append(clock.now)
            minute, elapsed = divmod(clock.now, 60.0)
            now = sum(at // 60 == minute for at in let_in)
            before = sum(at // 60 == minute - 1 for at in let_in)
            assert now <= rpm - before * (1 - elapsed / 60) + 1e-6
    for at in let_in:
        assert sum(at - 60 < one <= at for one in let_in) < 2 * rpm + 1


async def test_who_waits_as_told_is_let_in(store: Store, clock: Clock) -> None:
    one, two = Gateway(store, clock, rpm=3), Gateway(store, clock, rpm=3)
    assert [await one.lets_in() for _ in range(3)] == [True] * 3
    with pytest.raises(TooMany) as raised:
        await two.limits.admit("t")
    assert raised.value.retry_after_s is not None
    clock.now += raised.value.retry_after_s + 0.001
    assert await two.lets_in()


async def test_headers_tell_what_all_have_used(store: Store, clock: Clock) -> None:
    one, two = Gateway(store, clock, rpm=10), Gateway(store, clock, rpm=10)
    for _ in range(4):
        await one.lets_in()
    await two.lets_in()
    assert dict(two.limits.headers("t"))[b"x-ratelimit-remaining-requests"] == b"5"


async def test_tokens_are_shared_and_corrected(store: Store, clock: Clock) -> None:
    one, two = Gateway(store, clock, tpm=1000), Gateway(store, clock, tpm=1000)
    settle = await one.take(600)
    assert settle is not None
    assert await two.take(600) is None
    settle(100)
    clock.now += 1.0
    assert await one.take(500) is not None
    more = await one.take(400)
    assert more is not None
    more(600)  # it became more than was foreseen: the next ones wait
    assert await one.take(10) is None
    assert await one.take(2000) is None


async def test_what_one_did_not_use_of_a_minute_does_not_weigh_on_the_next(
    store: Store, clock: Clock
) -> None:
    one = Gateway(store, clock, rpm=5000)
    await one.lets_in()  # leases a slice of 100
    clock.now += 60
    await one.lets_in()
    assert dict(one.limits.headers("t"))[b"x-ratelimit-remaining-requests"] == b"4998"


async def test_while_the_store_is_away_each_counts_alone_and_then_together_again(
    store: Store, clock: Clock
) -> None:
    one, two = Gateway(store, clock, rpm=3, max_concurrent=9), Gateway(store, clock, rpm=3)
    store.away = True
    for gateway in (one, two):
        assert [await gateway.lets_in() for _ in range(5)] == [True] * 3 + [False] * 2
    store.away = False
    clock.now += AWAY_S + 120
    tries = [gateway.lets_in() for gateway in (one, two) * 4]
    assert sum(await asyncio.gather(*tries)) == 3


async def test_slots_are_held_together_and_come_back(store: Store, clock: Clock) -> None:
    one, two = (Gateway(store, clock, max_concurrent=4) for _ in range(2))
    assert [await one.lets_in() for _ in range(3)] == [True] * 3
    assert [await two.lets_in() for _ in range(2)] == [True, False]
    one.limits.leave("t")
    clock.now += 1
    assert not await two.lets_in(), "it is held until it is let go"
    await one.shared.slots("t", 4).tend()
    clock.now += 1
    assert await two.lets_in()


async def test_a_gateway_that_ends_lets_its_slots_go(store: Store, clock: Clock) -> None:
    one, two = (Gateway(store, clock, max_concurrent=40) for _ in range(2))
    for _ in range(40):
        assert await one.lets_in()
    assert not await two.lets_in()
    await one.shared.close()
    clock.now += 1
    assert await two.lets_in()


async def test_a_reload_keeps_what_was_counted(store: Store, clock: Clock) -> None:
    one = Gateway(store, clock, rpm=5, max_concurrent=2)
    assert await one.lets_in()
    one.limits.replace([])
    one.limits.replace([Tenant(name="t", rpm=5, max_concurrent=1)])
    assert not await one.lets_in()
    one.limits.leave("t")
    assert await one.lets_in()


class SlowStore(Store):
    """It answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()

    def _look(self) -> None:
        super()._look()
        assert self.may_answer.wait(PATIENT_S)


@pytest.mark.parametrize("limit", ["max_concurrent", "rpm"])
async def test_who_waits_for_the_store_is_let_in_when_its_limit_is_lifted(
    clock: Clock, limit: str
) -> None:
    store = SlowStore()
    one = Gateway(store, clock, **{limit: 3})
    waiting = asyncio.create_task(one.lets_in())
    await eventually(lambda: store.asked)
    one.limits.replace([Tenant(name="t")])
    assert not one.limits.watches("t")
    store.may_answer.set()
    assert await waiting
    one.limits.replace([Tenant(name="t", max_concurrent=1)])
    assert not await one.lets_in(), "it counts as long as it is in flight"
    one.limits.leave("t")
    clock.now += 1
    assert await one.lets_in()


async def test_a_tenant_without_limits_is_forgotten_when_its_last_request_has_left(
    store: Store, clock: Clock
) -> None:
    one = Gateway(store, clock, rpm=5)
    assert await one.lets_in()
    assert await one.lets_in()
    one.limits.replace([])
    one.limits.leave("t")
    assert one.limits.watches("t")
    one.limits.leave("t")
    assert not one.limits.watches("t")


async def test_a_flood_over_the_limit_does_not_wait_in_a_row_for_a_store_that_hangs(
    store: Store, clock: Clock
) -> None:
    one = Gateway(store, clock, max_concurrent=1)
    store.away = True
    assert await one.lets_in()
    clock.now += 10.0
    store.asked = 0
    slots = one.shared.slots("t", 1)
    # All came before the first was told that nobody answers, at times more than a refusal apart.
    assert not any([await slots.lease(clock.now + 0.2 * late, 1) for late in range(20)])
    assert store.asked == 1
    clock.now += AWAY_S
    assert not await one.lets_in()
    assert store.asked == 2
