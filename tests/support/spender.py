"""A gateway's budgets in a process of its own, spending as fast as it can: for tests of replicas.

    python -m tests.support.spender REDIS_URL BUDGET_USD MOST_NANO SECONDS

Spends a first time, says "ready", waits for a line, and then prints what it spent, in
nano-US-dollars, after each settled request, so that one that is killed has told the truth; each
costs between nothing and MOST_NANO, which is what it reserves. It ends after SECONDS, or when there
was nothing to spend for QUIET_S.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

from gateway.observe.logs import LineWriter, build_log
from gateway.settings import Tenant
from gateway.tenants.budgets import BudgetAway, Budgets, QuotaSpent
from gateway.tenants.lease_store_redis import RedisLeaseStore

WORKERS = 8
QUIET_S = 1.0


async def spend(url: str, budget_usd: float, most: int, seconds: float) -> None:
    log = build_log(LineWriter(sys.stderr.buffer), "error", as_json=True)
    budgets = Budgets(RedisLeaseStore(url), log)
    tenant = Tenant(name="acme", budget_usd_day=budget_usd)
    tending = asyncio.create_task(budgets.tend())
    last = time.monotonic()

    async def spend_once() -> int | None:
        """What it cost; None where there is nothing left."""
        nonlocal last
        try:
            ticket = await budgets.reserve(tenant, most)
        except QuotaSpent:
            return None
        except BudgetAway:
            last = time.monotonic()
            return None
        await asyncio.sleep(random.random() * 0.002)
        cost = random.randint(0, most)
        ticket.settle(cost)
        last = time.monotonic()
        return cost

    while (first := await spend_once()) is None:  # noqa: ASYNC110  Redis may be away
        await asyncio.sleep(0.02)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    say(first)
    last = time.monotonic()
    end = last + seconds

    async def work() -> None:
        while (now := time.monotonic()) < end and now - last < QUIET_S:
            cost = await spend_once()
            if cost is None:
                await asyncio.sleep(0.02)
            else:
                say(cost)

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    tending.cancel()
    await budgets.close()


def say(cost: int) -> None:
    sys.stdout.write(f"{cost}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(spend(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
