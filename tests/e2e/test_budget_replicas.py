"""Several processes hammer one budget in a real Redis."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.tenants.budgets import NANO, period_at
from gateway.tenants.lease_store import Account
from gateway.tenants.lease_store_redis import RedisLeaseStore
from tests.support.program import PATIENCE_S, ROOT, quiet_environment
from tests.support.redis_server import RedisServer
from tests.support.shared import PATIENT_S

MOST = NANO // 1000
"""What one request reserves."""
pytestmark = pytest.mark.slow


@pytest.fixture
def server(redis7: RedisServer) -> RedisServer:
    redis7.client.flushall()
    return redis7


@contextmanager
def spenders(
    url: str, count: int, budget_usd: float, seconds: float
) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tests.support.spender", url, str(budget_usd), str(MOST)]
    started = [
        subprocess.Popen(
            [*command, str(seconds)],
            cwd=ROOT,
            env=quiet_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in started:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        yield started
    finally:
        for one in started:
            one.kill()
            one.wait()
            for pipe in (one.stdin, one.stdout):
                assert pipe is not None
                pipe.close()


def spent_by(one: subprocess.Popen[str]) -> int:
    said, _ = one.communicate(timeout=PATIENCE_S)
    return sum(int(line) for line in said.splitlines())


def used(url: str) -> int:
    name, ends_at = period_at(time.time(), "day")
    store = RedisLeaseStore(url, PATIENT_S)
    found = store.used(Account(f"acme:{name}", 0, ends_at))
    store.close()
    return found


def test_together_they_spend_the_budget_and_not_a_nano_more(server: RedisServer) -> None:
    budget = 0.5
    with spenders(server.url, 4, budget, PATIENCE_S / 2) as processes:
        spent = [spent_by(one) for one in processes]
    assert all(spent)
    # What is left is less than a request reserves, once for each of them at most.
    assert budget * NANO - 4 * MOST <= sum(spent) <= budget * NANO
    assert used(server.url) == sum(spent)


def test_what_a_killed_one_had_leased_counts_in_full(server: RedisServer) -> None:
    budget = 100.0
    with spenders(server.url, 3, budget, 3.0) as (victim, *others):
        assert victim.stdout is not None
        victim.stdout.readline()
        victim.kill()
        lost = 1 + spent_by(victim)
        spent = sum(spent_by(one) for one in others)
    assert used(server.url) >= spent + lost
    assert used(server.url) <= spent + lost + budget * NANO / 50 + MOST


def test_when_redis_stands_still_they_spend_their_slices_and_wait(server: RedisServer) -> None:
    budget = 1.0
    with spenders(server.url, 3, budget, 6.0) as processes:
        for one in processes:
            assert one.stdout is not None
            one.stdout.readline()
        server.stop()
        time.sleep(2.0)
        server.resume()
        spent = sum(spent_by(one) for one in processes)
    assert spent <= budget * NANO
    assert used(server.url) <= budget * NANO
