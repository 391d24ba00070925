"""Budgets in /metrics: how each stands, so that somebody is warned before a tenant runs dry.

Series are as many as there are budgets in the settings. Several gateways tell the same `used`, up
to what each has leased and not spent and up to ten seconds: take the largest, not the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.tenants.budgets import NANO, BudgetState


class BudgetsNow(Collector):
    """Read when scraped: a request pays nothing."""

    def __init__(self, states: Callable[[], Iterable[BudgetState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        who = ["tenant", "period"]
        used = GaugeMetricFamily("sluice_budget_used_usd", "Spent and leased", labels=who)
        limit = GaugeMetricFamily("sluice_budget_limit_usd", "May be spent", labels=who)
        leased = GaugeMetricFamily("sluice_budget_leased_usd", "Held, not spent", labels=who)
        for one in self._states():
            names = [one.tenant, one.period]
            used.add_metric(names, one.used / NANO)
            limit.add_metric(names, one.limit / NANO)
            leased.add_metric(names, one.leased / NANO)
        yield from (used, limit, leased)
