"""Budgets in US dollars per day and month: reserved before a model is asked, settled after.

                 lease            reserve              settle
    store ─────────────► pot.free ─────────► request ─────────► spent
      ▲                    │   ▲                │
      └──── give back ─────┘   └── what is over ┘

A gateway leases slices of a budget (tenants/lease_store.py) and deals them out in memory: most
requests ask nobody. A reservation is an upper bound of what the request may cost, so that whatever
runs at one time, anywhere, a budget is not overspent; only a model that uses more than it may can
exceed it, by what it used more. A slice that is not needed for a while is given back, so that what
is left can be spent wherever it is asked for.

A limit that is lowered holds at once for whatever is let in from then on: what a gateway had leased
beyond it goes back before anything is reserved from it. What was let in before runs to its end.

When the store is away a gateway spends what it holds. Then, as the tenant's policy says, its
requests are refused with a 503 (`refuse`), or go on and are booked when the store is back
(`settle_later`): that debt is known to this process only, and is lost with it.

Periods are days and months in UTC. What was reserved before midnight belongs to the day before.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from engine.contract import TooMany
from gateway.observe.logs import Log
from gateway.settings import Tenant
from gateway.tenants.lease_line import AWAY_S, LeaseLine
from gateway.tenants.lease_store import Account, LeaseStore, LeaseStoreFault, Move, Moved
from gateway.tenants.pot import Period, Pot, Ticket

NANO = 1_000_000_000
SLICES = 50
"""A slice is this part of a budget, or what a request needs."""
IDLE_S = 5.0
ROOMY = 12
"""While a quarter of a budget is free, a slice may lie idle so many times longer."""
TEND_S = 1.0
LOOK_S = 10.0
"""How often the store is asked how every budget stands, for /metrics."""
REFUSED_S = 0.2


class BudgetAway(TooMany):
    """503, and this tenant's own: others may go on, so that it is no Overloaded, which concerns
    everybody who shares an answer (cache/join.py)."""

    status = 503
    kind = "overloaded_error"


class QuotaSpent(TooMany):
    """OpenAI's 429 for who has no money left, which SDKs do not retry blindly."""

    kind = "insufficient_quota"


@dataclass(frozen=True, slots=True)
class Standing:
    """What of a budget is used, in nano-US-dollars: by all gateways, with what others have leased,
    without what this one holds free."""

    period: Period
    used: int


@dataclass(frozen=True, slots=True)
class BudgetState:
    """One budget as /metrics tells it, in nano-US-dollars. `leased`: what this gateway holds of it
    and has not spent, which no other can spend."""

    tenant: str
    period: Period
    limit: int
    used: int
    leased: int


class Budgets:
    """Owned by the event loop's thread. `tend` runs beside the requests."""

    def __init__(
        self,
        store: LeaseStore,
        log: Log,
        tenants: Iterable[Tenant] = (),
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line = LeaseLine(
            store, log, lost="budget store away", found="budget store is back", clock=clock
        )
        self._wall = wall
        self._clock = clock
        self._us = uuid.uuid4().hex
        self._pots: dict[tuple[str, Period], Pot] = {}
        self._ended: list[Pot] = []
        self._look_at = -math.inf
        self.replace(tenants)

    def replace(self, tenants: Iterable[Tenant]) -> None:
        """Whose budgets `states` tells of."""
        self._tenants = tuple(tenants)

    def states(self) -> list[BudgetState]:
        """How every budget stood, when the store was last asked. May be called from any thread."""
        told = []
        for tenant in self._tenants:
            for period, limit in limits_of(tenant):
                pot = self._pots.get((tenant.name, period))
                if pot is not None:
                    used = max(0, pot.shown - pot.free + pot.debt)
                    leased = pot.free + pot.reserved
                    told.append(BudgetState(tenant.name, period, limit, used, leased))
        return told

    async def reserve(self, tenant: Tenant, amount: int) -> Ticket:
        """Hold `amount` nano-US-dollars for a request. Raises QuotaSpent, or BudgetAway when the
        store is away and the policy says so."""
        ticket = Ticket([], amount)
        try:
            for period, limit in limits_of(tenant):
                pot = self._pot(tenant.name, period, limit)
                if pot.usable < amount:
                    await self._fill(pot, tenant, amount)
                pot.free -= amount
                pot.reserved += amount
                pot.touched = self._clock()
                ticket.pots.append(pot)
        except BaseException:
            ticket.settle(0)
            raise
        return ticket

    async def used(self, tenant: Tenant) -> list[Standing]:
        """How each budget stands. Raises LeaseStoreFault."""
        found = []
        for period, limit in limits_of(tenant):
            pot = self._pot(tenant.name, period, limit)
            used = await self._line.used(pot.account)
            found.append(Standing(period, used - pot.free + pot.debt))
        return found

    async def tend(self) -> None:
        """Until cancelled: give back what lies idle, book debts, forget ended periods."""
        while True:
            await self.look()
            await asyncio.sleep(TEND_S)
            await self.tend_once(IDLE_S)

    async def look(self) -> None:
        """Ask how all budgets stand, if that was not done a moment ago."""
        now = self._clock()
        if now < self._look_at or self._line.is_away:
            return
        self._look_at = now + LOOK_S
        pots = [self._pot(one.name, *limit) for one in self._tenants for limit in limits_of(one)]
        with suppress(LeaseStoreFault):
            used = await self._line.used_of([pot.account for pot in pots])
            for pot, one in zip(pots, used, strict=True):
                pot.shown = one

    async def tend_once(self, idle_s: float) -> None:
        now = self._clock()
        for pot in [*self._pots.values(), *self._ended]:
            patience_s = idle_s if 4 * pot.used > 3 * pot.account.limit else ROOMY * idle_s
            idle = now - pot.touched >= patience_s or pot in self._ended or pot.free > pot.usable
            if (pot.debt or (idle and pot.free) or pot.asked) and not self._line.is_away:
                await self._tend(pot, idle=idle)
        self._ended = [pot for pot in self._ended if pot.reserved or pot.free or pot.debt]

    async def close(self) -> None:
        """Settle everything that this gateway holds, where the store can be reached."""
        self._line.try_again()
        await self.tend_once(idle_s=0.0)

    async def problem(self) -> str | None:
        """For /readyz, without details."""
        if not self._line.fault:
            return None
        return "the budgets' store cannot be reached: what is leased is spent. See the log"

    # ---------------------------------------------------------------- pots

    def _pot(self, tenant: str, period: Period, limit: int) -> Pot:
        """The pot of the period that is now."""
        pot, now = self._pots.get((tenant, period)), self._wall()
        if pot is not None and pot.account.limit == limit and now < pot.account.ends_at:
            return pot
        name, ends_at = period_at(now, period)
        account = Account(f"{tenant}:{name}", limit, ends_at)
        if pot is not None and pot.account.name == account.name:
            pot.account, pot.left = account, None
            return pot
        if pot is not None:
            self._ended.append(pot)
        pot = self._pots[(tenant, period)] = Pot(tenant, period, account, self._us)
        return pot

    async def _fill(self, pot: Pot, tenant: Tenant, amount: int) -> None:
        """Lease until `amount` may be reserved, or raise."""
        async with pot.lock:
            known = pot.left is not None and self._clock() < pot.refused_until
            if known and amount >= pot.refused:
                raise _spent(pot, pot.left or 0, amount, self._wall())
            try:
                await self._catch_up(pot)
                while (lacks := amount - pot.usable) > 0:  # others reserve while a reply is awaited
                    if pot.debt:
                        await self._book(pot)
                        continue
                    most = max(lacks, pot.account.limit // SLICES)
                    back = pot.free - pot.usable
                    moved = await self._move(pot, give=back, least=lacks, most=most)
                    if not moved.granted and pot.usable < amount:
                        await self._refuse(pot, amount, moved)
            except LeaseStoreFault:
                self._go_on(pot, tenant, amount)

    async def _book(self, pot: Pot) -> None:
        """A debt, in one move, before anything is leased: else it would eat slice after slice."""
        await self._move(pot, most=pot.debt, beyond=True)

    async def _refuse(self, pot: Pot, amount: int, moved: Moved) -> None:
        """Give back what is too little here, so that all that is left lies in one place, and say
        no: for a moment to everybody who asks for as much, or a flood would ask the store."""
        left = max(0, pot.account.limit - moved.used + pot.free)
        if pot.free:
            await self._move(pot, give=pot.free)
        pot.left = left
        pot.refused, pot.refused_until = amount, self._clock() + REFUSED_S
        raise _spent(pot, left, amount, self._wall())

    def _go_on(self, pot: Pot, tenant: Tenant, amount: int) -> None:
        """The store is away and the slice is spent."""
        lacks = amount - pot.usable
        if lacks <= 0:
            return
        if tenant.budget_when_away == "settle_later":
            pot.debt += lacks
            pot.free += lacks
            return
        raise BudgetAway(
            f"The budget of tenant {pot.tenant!r} cannot be checked now, and what this gateway "
            "held of it is spent; send the request again shortly.",
            code="budget_store_away",
            retry_after_s=AWAY_S,
        )

    async def _tend(self, pot: Pot, *, idle: bool) -> None:
        async with pot.lock:
            try:
                await self._catch_up(pot)
                if pot.debt:
                    await self._book(pot)
                if idle and pot.free:
                    await self._move(pot, give=pot.free)
            except LeaseStoreFault:
                return

    # ---------------------------------------------------------------- turns

    async def _catch_up(self, pot: Pot) -> None:
        """Ask again what was not answered."""
        if pot.asked is not None:
            await self._ask(pot, pot.asked)

    async def _move(
        self, pot: Pot, *, give: int = 0, least: int = 0, most: int = 0, beyond: bool = False
    ) -> Moved:
        pot.turn += 1
        pot.free -= give  # nobody may reserve it meanwhile
        return await self._ask(pot, Move(pot.lease, pot.turn, give, least, most, beyond))

    async def _ask(self, pot: Pot, move: Move) -> Moved:
        pot.asked = move
        if self._line.is_away:
            raise LeaseStoreFault("The store did not answer a moment ago.")
        moved = await self._line.move(pot.account, move)
        pot.asked, pot.used, pot.shown = None, moved.used, moved.used
        pot.put(moved.granted)
        return moved


def limits_of(tenant: Tenant) -> Iterator[tuple[Period, int]]:
    """The budgets that a tenant has, in nano-US-dollars."""
    if tenant.budget_usd_day is not None:
        yield "day", round(tenant.budget_usd_day * NANO)
    if tenant.budget_usd_month is not None:
        yield "month", round(tenant.budget_usd_month * NANO)


def period_at(now: float, period: Period) -> tuple[str, float]:
    """("day:2026-11-25", when it ends in seconds since the epoch), in UTC."""
    at = datetime.fromtimestamp(now, UTC)
    start = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return f"day:{start:%Y-%m-%d}", (start + timedelta(days=1)).timestamp()
    start = start.replace(day=1)
    end = (start + timedelta(days=32)).replace(day=1)
    return f"month:{start:%Y-%m}", end.timestamp()


def _spent(pot: Pot, left: int, needs: int, now: float) -> QuotaSpent:
    ends_at = pot.account.ends_at
    when = datetime.fromtimestamp(ends_at, UTC)
    return QuotaSpent(
        f"Tenant {pot.tenant!r} has ${left / NANO:.6f} left of its ${pot.account.limit / NANO:g} "
        f"for this {pot.period}, and this request may cost up to ${needs / NANO:.6f}. Ask for "
        f"fewer max_tokens, wait until {when:%Y-%m-%d %H:%M} UTC, or have the operator raise "
        f"budget_usd_{pot.period}.",
        code="insufficient_quota",
        retry_after_s=max(1.0, ends_at - now),
    )
