"""What one gateway holds of one budget, and one request's part of it: arithmetic, no store.

How a pot is filled, and given back: tenants/budgets.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from gateway.tenants.lease_store import Account, Move

Period = Literal["day", "month"]


@dataclass(slots=True, eq=False)
class Pot:
    """What this gateway holds of one account. `free` is leased and neither reserved nor spent;
    `debt` was spent without being leased. Owned by the event loop; `lock` guards its turns."""

    tenant: str
    period: Period
    account: Account
    lease: str
    free: int = 0
    debt: int = 0
    reserved: int = 0
    used: int = 0
    """By all gateways, as the store last said."""
    shown: int = 0
    """The same, looked at now and then: for /metrics, and for no decision."""
    touched: float = 0.0
    turn: int = 0
    asked: Move | None = None
    """A move whose reply was not seen: it is asked again before any other."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    left: int | None = None
    """What there was when a request was last refused. As much as that request wanted, `refused`, is
    refused again without asking the store, until `refused_until` or until something is put."""
    refused: int = 0
    refused_until: float = 0.0

    @property
    def usable(self) -> int:
        """What may be reserved of what is free: nothing, while more is leased than the limit."""
        return self.free if self.used <= self.account.limit else 0

    def put(self, amount: int) -> None:
        if amount:
            self.left = None
        paid = min(self.debt, amount)
        self.debt -= paid
        self.free += amount - paid


@dataclass(slots=True)
class Ticket:
    """One request's reservation, in every budget that its tenant has. Settled once."""

    pots: list[Pot]
    amount: int
    open: bool = True

    def settle(self, spent: int) -> None:
        """Book what it cost and free the rest."""
        if not self.open:
            return
        self.open = False
        for pot in self.pots:
            pot.reserved -= self.amount
            rest = self.amount - spent
            if rest >= 0:
                pot.put(rest)
            else:
                _overdraw(pot, -rest)


def _overdraw(pot: Pot, amount: int) -> None:
    """Spend what is not held: first what is free, then as a debt."""
    paid = min(pot.free, amount)
    pot.free -= paid
    pot.debt += amount - paid
