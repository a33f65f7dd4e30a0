"""Times and tokens of requests, by model, class and tenant class.

Counting is plain arithmetic, because it happens for every token (a gap between two tokens costs 0.3 µs; the client
library's histogram took 2); the Prometheus families are made on a scrape. Tenants that nobody configured share one
label, so that clients cannot grow the set.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace_server.domain import ModelId, ServiceClass, TenantId

OTHER_TENANTS = "other"
_LABELS = ["model", "class", "tenant_class"]

_WAIT_BOUNDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_FIRST_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAP_BOUNDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_SERVICE_BOUNDS = (0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

QueueCounts: TypeAlias = Mapping[tuple[ModelId, ServiceClass], tuple[int, int]]
"""Requests that wait, and that are in the engine."""


class Histogram:
    """Counts seconds in buckets. `sum_seconds`: of all that were counted."""

    __slots__ = ("_bounds", "_counts", "sum_seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum_seconds = 0.0

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self._counts)

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum_seconds += seconds

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Show it under these labels."""
        names = [*map(str, self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(names, accumulate(self._counts), strict=True)), self.sum_seconds)


class Meters:
    """What is counted of one model's requests of one class and tenant class."""

    def __init__(self) -> None:
        self.queue_wait = Histogram(_WAIT_BOUNDS)
        self.ttft = Histogram(_FIRST_TOKEN_BOUNDS)
        self.itl = Histogram(_GAP_BOUNDS)
        self.service = Histogram(_SERVICE_BOUNDS)
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.num_output_tokens = 0
        self.num_preempted = 0
        self.refused: Counter[str] = Counter()


_TIMES: tuple[tuple[str, str, Callable[[Meters], Histogram]], ...] = (
    ("queue_wait", "Time between tokenising and being let into the engine", lambda meters: meters.queue_wait),
    ("time_to_first_token", "Time from a request's arrival to its first token", lambda meters: meters.ttft),
    ("inter_token", "Time between two tokens of an answer", lambda meters: meters.itl),
    ("service", "Time from being let into the engine to the end", lambda meters: meters.service),
)


class RequestMetrics(Collector):
    """See the module. `queued` says how many requests wait and run; set before the first scrape."""

    def __init__(self, tenants: Iterable[TenantId] = ()) -> None:
        """`tenants` have a label of their own."""
        self.queued: Callable[[], QueueCounts] = dict
        self._tenants = frozenset(tenants)
        self._meters: dict[tuple[str, str, str], Meters] = {}

    def meters(self, model: ModelId, service_class: ServiceClass, tenant: TenantId) -> Meters:
        """Where these are counted."""
        key = (model, service_class.value, tenant if tenant in self._tenants else OTHER_TENANTS)
        return self._meters.get(key) or self._meters.setdefault(key, Meters())

    def collect(self) -> Iterator[Metric]:
        """Every family, empty ones included, so that their names are known from the start."""
        yield from self._times()
        yield self._tokens()
        yield self._refusals()
        yield self._preemptions()
        yield from self._queues()

    def _times(self) -> Iterator[Metric]:
        for name, meaning, histogram in _TIMES:
            family = HistogramMetricFamily(f"headrace_{name}_seconds", meaning, labels=_LABELS)
            for labels, meters in self._meters.items():
                histogram(meters).add_to(family, [*labels])
            yield family

    def _tokens(self) -> Metric:
        tokens = CounterMetricFamily(
            "headrace_tokens",
            "Tokens of requests: of prompts that were computed or cached, of outputs",
            labels=[*_LABELS, "kind"],
        )
        for labels, meters in self._meters.items():
            tokens.add_metric([*labels, "computed"], meters.num_computed_tokens)
            tokens.add_metric([*labels, "cached"], meters.num_cached_tokens)
            tokens.add_metric([*labels, "output"], meters.num_output_tokens)
        return tokens

    def _refusals(self) -> Metric:
        refusals = CounterMetricFamily(
            "headrace_refusals", "Requests that were not served, by reason", labels=[*_LABELS, "reason"]
        )
        for labels, meters in self._meters.items():
            for reason, count in meters.refused.items():
                refusals.add_metric([*labels, reason], count)
        return refusals

    def _preemptions(self) -> Metric:
        preemptions = CounterMetricFamily(
            "headrace_preemptions", "Requests that gave way to others and began again", labels=_LABELS
        )
        for labels, meters in self._meters.items():
            preemptions.add_metric([*labels], meters.num_preempted)
        return preemptions

    def _queues(self) -> Iterator[Metric]:
        labels = ["model", "class"]
        waiting = GaugeMetricFamily("headrace_requests_waiting", "Requests that wait for an engine", labels=labels)
        running = GaugeMetricFamily("headrace_requests_running", "Requests that were let in", labels=labels)
        for (model, service_class), (num_waiting, num_running) in self.queued().items():
            waiting.add_metric([model, service_class.value], num_waiting)
            running.add_metric([model, service_class.value], num_running)
        yield from (waiting, running)
