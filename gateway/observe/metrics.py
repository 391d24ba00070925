"""GET /metrics: the roll-up in Prometheus' text format.

There are no counters to increment: a collector reads the folded account when it is scraped, so a
metric can never disagree with the ledger, and a request pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.observe.rollup import Durations, RollUp

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class EngineState:
    """What one model is doing in the engine now. `pages` counts KV pages by state: free + running
    + cached are all, leased are part of cached. The batch is that of the last step; tokens/s are
    generated ones, over about the last 10 s."""

    running: int = 0
    waiting: int = 0
    preemptions: int = 0
    pages: Mapping[str, int] = field(default_factory=dict)
    batch_sequences: int = 0
    batch_tokens: int = 0
    tokens_per_s: float = 0.0
    displaced: int = 0
    computed: Mapping[str, int] = field(default_factory=dict)
    """Tokens since the start: prompt tokens (computed), completion tokens (drawn), and reused ones
    (prompt tokens that the prefix tree had). Whoever they were computed for."""


EngineStates = Callable[[], Mapping[str, EngineState]]
"""By model name, read at any time from the event loop's thread."""


class Metrics:
    """Renders /metrics. Holds a registry of its own: nothing global, nothing of other libraries."""

    def __init__(
        self,
        rollup: RollUp,
        engine: EngineStates,
        inflight: Callable[[], int],
        more: Iterable[Collector] = (),
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Account(rollup))
        self._registry.register(_Now(engine, inflight))
        for collector in more:
            self._registry.register(collector)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class _Account(Collector):
    """What happened, from the ledger."""

    def __init__(self, rollup: RollUp) -> None:
        self._rollup = rollup

    def collect(self) -> Iterator[Metric]:
        self._rollup.fold()
        yield from self._counts()
        yield from self._money()
        yield _histogram("sluice_request_seconds", "Time of whole answers", "origin",
                         self._rollup.request_s)  # fmt: skip
        yield _histogram("sluice_ttft_seconds", "Time to the first token", "origin",
                         self._rollup.ttft_s)  # fmt: skip
        yield _histogram("sluice_tpot_seconds", "Time per later token", "model",
                         self._rollup.tpot_s)  # fmt: skip

    def _counts(self) -> Iterator[Metric]:
        who = ["tenant", "model", "origin"]
        requests = CounterMetricFamily("sluice_requests", "Calls", labels=[*who, "status"])
        tokens = CounterMetricFamily("sluice_tokens", "Tokens delivered", labels=[*who, "kind"])
        for (*names, status), one in self._rollup.sums.items():
            requests.add_metric([*map(str, names), str(status)], one.count)
            if status == 200:
                tokens.add_metric([*map(str, names), "prompt"], one.prompt_tokens)
                tokens.add_metric([*map(str, names), "completion"], one.completion_tokens)
        yield requests
        yield tokens
        lookups = CounterMetricFamily("sluice_cache_lookups", "Lookups", labels=["layer", "result"])
        _add(lookups, self._rollup.lookups, 1)
        yield lookups

    def _money(self) -> Iterator[Metric]:
        avoided = CounterMetricFamily(
            "sluice_tokens_avoided", "Tokens not computed", labels=["tenant", "by"]
        )
        tokens, nano_usd = self._rollup.avoided()
        _add(avoided, tokens, 1)
        yield avoided
        cost = CounterMetricFamily("sluice_cost_usd", "Spent", labels=["tenant", "model"])
        _add(cost, self._rollup.spent(), 1e-9)
        yield cost
        wasted = CounterMetricFamily(
            "sluice_cost_wasted_usd", "Spent on answers that were cut", labels=["tenant", "model"]
        )
        _add(wasted, self._rollup.wasted(), 1e-9)
        yield wasted
        saved = CounterMetricFamily("sluice_cost_avoided_usd", "Not spent", labels=["tenant", "by"])
        _add(saved, nano_usd, 1e-9)
        yield saved


class _Now(Collector):
    """What is going on at this moment."""

    def __init__(self, engine: EngineStates, inflight: Callable[[], int]) -> None:
        self._engine = engine
        self._inflight = inflight

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("sluice_inflight_requests", "Requests now", value=self._inflight())
        pages = GaugeMetricFamily("sluice_kv_pages", "KV pages", labels=["model", "state"])
        running = GaugeMetricFamily("sluice_running_sequences", "Decoding now", labels=["model"])
        waiting = GaugeMetricFamily("sluice_waiting_sequences", "Not yet in", labels=["model"])
        evicted = CounterMetricFamily("sluice_preemptions", "Set back", labels=["model"])
        displaced = CounterMetricFamily("sluice_displaced", "Gave way", labels=["model"])
        work = CounterMetricFamily("sluice_engine_tokens", "Done", labels=["model", "kind"])
        for model, state in self._engine().items():
            for kind, count in state.computed.items():
                work.add_metric([model, kind], count)
            running.add_metric([model], state.running)
            waiting.add_metric([model], state.waiting)
            evicted.add_metric([model], state.preemptions)
            displaced.add_metric([model], state.displaced)
            for name, count in state.pages.items():
                pages.add_metric([model, name], count)
        yield from (pages, running, waiting, evicted, displaced, work)


class StoreFaults(Collector):
    """Lookups in the cache's store that failed, by whose fault it was."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        faults = CounterMetricFamily("sluice_store_faults", "Lookups that failed", labels=["whose"])
        for whose, count in self._counts.items():
            faults.add_metric([whose], count)
        yield faults


class UpstreamErrors(Collector):
    """How often servers elsewhere failed, by model and kind, retried tries included."""

    def __init__(self, errors: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._errors = errors

    def collect(self) -> Iterator[Metric]:
        failed = CounterMetricFamily("sluice_upstream_errors", "Failed", labels=["model", "kind"])
        _add(failed, self._errors(), 1)
        yield failed


def _add(family: CounterMetricFamily, counts: Mapping[tuple[str, str], int], unit: float) -> None:
    for names, count in counts.items():
        family.add_metric(list(names), count * unit)


def _histogram(
    name: str, text: str, label: str, series: Mapping[str, Durations]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=[label])
    for value, durations in series.items():
        family.add_metric([value], _buckets(durations.cumulative()), durations.total)
    return family


def _buckets(edges: Iterable[tuple[float, int]]) -> list[tuple[str, float]]:
    return [("+Inf" if edge == float("inf") else repr(edge), count) for edge, count in edges]
