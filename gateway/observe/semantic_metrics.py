"""The semantic cache in /metrics: what its promise has cost, and what it rests on.

Namespaces are as many as there are system prompts, and scopes as many as there are end users, so
they are summed up by tenant; a scope that several tenants share stands under its own name.
`/admin/caches` tells each namespace apart. Read when scraped: a request pays nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cache.entry import SpaceState
from cache.verify_state import State

Spaces: TypeAlias = Callable[[], Iterable[SpaceState]]


class SemanticNow(Collector):
    """Gauges and not counters: what was forgotten with a namespace is in no sum any more."""

    def __init__(self, spaces: Spaces) -> None:
        self._spaces = spaces

    def collect(self) -> Iterator[Metric]:
        entries = GaugeMetricFamily("sluice_semantic_entries", "Questions kept", labels=["tenant"])
        labels = GaugeMetricFamily(
            "sluice_semantic_labels", "Answers compared", labels=["tenant", "source"]
        )
        spaces = GaugeMetricFamily(
            "sluice_semantic_namespaces", "Told apart", labels=["tenant", "state"]
        )
        requests = GaugeMetricFamily(
            "sluice_semantic_requests", "Asked by meaning", labels=["tenant", "kind"]
        )
        budget = GaugeMetricFamily(
            "sluice_semantic_error_budget", "Wrong hits", labels=["tenant", "kind"]
        )
        told = {"labels": labels, "spaces": spaces, "requests": requests, "budget": budget}
        for tenant, sums in sorted(_by_tenant(self._spaces()).items()):
            entries.add_metric([tenant], sums.pop(("entries", ""), 0.0))
            for (family, kind), value in sorted(sums.items()):
                told[family].add_metric([tenant, kind], value)
        yield from (entries, *told.values())


_Sums: TypeAlias = defaultdict[tuple[str, str], float]


def _by_tenant(spaces: Iterable[SpaceState]) -> dict[str, _Sums]:
    found: dict[str, _Sums] = defaultdict(lambda: defaultdict(float))
    for space in spaces:
        sums = found[tenant_of(space.scope)]
        sums["entries", ""] += space.entries
        for source, count in space.labels_by_source.items():
            sums["labels", source] += count
        closed = space.promise is not None and space.promise.reason
        sums["spaces", "closed" if closed else "open"] += 1
        if space.promise is not None:
            _add(sums, space.promise)
    return found


def _add(sums: _Sums, promise: State) -> None:
    sums["requests", "asked"] += promise.requests
    sums["requests", "served"] += promise.served
    sums["requests", "explored"] += promise.audited
    for kind, value in (
        ("allowed", promise.allowed_wrong),
        ("spent", promise.expected_wrong),
        ("proven", promise.proven_at_most),
    ):
        sums["budget", kind] += value


def tenant_of(scope: str) -> str:
    """Whose scope it is; a shared one's own name."""
    kind, _, rest = scope.partition(":")
    return rest.partition("/")[0] if kind in {"tenant", "user"} else scope
