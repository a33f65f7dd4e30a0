"""Prometheus metrics in a registry of our own, with bounded label sets.

Engines are not asked on a scrape: their latest counters are copied. The body is cached for half a second, so that
many scrapers cost as much as one. Under the `vllm:` names stand label-free sums for the whole process, in the form
that the Gateway API Inference Extension's endpoint picker reads.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from headrace_server.domain import EngineStats, ModelId, ModelState, ModelStatus
from headrace_server.observability.request_metrics import QueueCounts, RequestMetrics

CONTENT_TYPE = CONTENT_TYPE_LATEST
_CACHE_SECONDS = 0.5
_DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LOAD_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200)

StatsReader = Callable[[], Mapping[ModelId, EngineStats]]
StatusReader = Callable[[], tuple[ModelStatus, ...]]


class Metrics:
    """This process's metrics. `watch` connects them to a pool; until then only requests are counted. A `PoolObserver`:
    the pool tells it what happens to models."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "headrace_requests",
            "HTTP requests answered, by route and status; the client leaving counts as 499",
            ["route", "status"],
            registry=self._registry,
        )
        self._duration = Histogram(
            "headrace_request_duration_seconds",
            "Time from a request's first byte to its answer's last",
            ["route"],
            buckets=_DURATION_BUCKETS,
            registry=self._registry,
        )
        self._loads = Counter(
            "headrace_model_loads",
            "Models brought into memory, and attempts that failed",
            ["model", "outcome"],
            registry=self._registry,
        )
        self._load_seconds = Histogram(
            "headrace_model_load_seconds",
            "Time from an engine's start until it serves",
            ["model"],
            buckets=_LOAD_BUCKETS,
            registry=self._registry,
        )
        self._deaths = Counter(
            "headrace_engine_deaths",
            "Engines that served and were found dead or hung",
            ["model"],
            registry=self._registry,
        )
        self._requests_of_models: RequestMetrics | None = None
        self._body = b""
        self._body_expires = float("-inf")

    def watch(self, stats: StatsReader, statuses: StatusReader) -> None:
        """Report these engines from now on."""
        self._registry.register(_EngineCollector(stats, statuses, self._queued))

    def watch_requests(self, requests: RequestMetrics) -> None:
        """Report these requests from now on."""
        self._requests_of_models = requests
        self._registry.register(requests)

    def _queued(self) -> QueueCounts:
        return {} if self._requests_of_models is None else self._requests_of_models.queued()

    def watch_server(
        self, *, models: Iterable[ModelId], memory_budget_bytes: int | None, is_draining: Callable[[], bool]
    ) -> None:
        """Report the memory that engines may take together (None: no bound), and whether requests are admitted. What
        has not happened to one of the `models` yet counts 0, so that the first time shows as an increase."""
        for model in models:
            self._deaths.labels(model)
            for outcome in ("ready", "failed"):
                self._loads.labels(model, outcome)
        if memory_budget_bytes is not None:
            self._gauge("headrace_memory_budget_bytes", "Memory that all engines may take").set(memory_budget_bytes)
        draining = self._gauge("headrace_draining", "1 once no new requests are admitted")
        draining.set_function(lambda: float(is_draining()))

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self._registry)

    def model_loaded(self, model: ModelId, seconds: float) -> None:
        """An engine has started, in so many seconds."""
        self._loads.labels(model, "ready").inc()
        self._load_seconds.labels(model).observe(seconds)

    def model_load_failed(self, model: ModelId) -> None:
        """A model could not be loaded."""
        self._loads.labels(model, "failed").inc()

    def engine_died(self, model: ModelId) -> None:
        """An engine that served was found dead or hung."""
        self._deaths.labels(model).inc()

    def request_done(self, *, route: str, status: int, seconds: float) -> None:
        """Count a finished request; `route` is the path template, never what the client sent."""
        self._requests.labels(route, str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def exposition(self) -> bytes:
        """The body of `/metrics`."""
        now = self._clock()
        if now >= self._body_expires:
            self._body = generate_latest(self._registry)
            self._body_expires = now + _CACHE_SECONDS
        return self._body


class _EngineCollector(Collector):
    def __init__(self, stats: StatsReader, statuses: StatusReader, queued: Callable[[], QueueCounts]) -> None:
        self._stats = stats
        self._statuses = statuses
        self._queued = queued

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield from _per_model(stats)
        yield from _pod_aggregates(stats, sum(num_waiting for num_waiting, _ in self._queued().values()))
        statuses = self._statuses()
        yield _states(statuses)
        yield from _residency(statuses)


def _per_model(stats: Mapping[ModelId, EngineStats]) -> Iterator[Metric]:
    running = GaugeMetricFamily("headrace_engine_requests_running", "Requests in the engine's batch", labels=["model"])
    waiting = GaugeMetricFamily("headrace_engine_requests_waiting", "Requests in the engine's queue", labels=["model"])
    kv_usage = GaugeMetricFamily("headrace_engine_kv_cache_usage_ratio", "KV blocks in use, of 1", labels=["model"])
    prompt = CounterMetricFamily("headrace_engine_prompt_tokens", "Prompt tokens, with cached ones", labels=["model"])
    generated = CounterMetricFamily("headrace_engine_generation_tokens", "Tokens generated", labels=["model"])
    for model, s in stats.items():
        running.add_metric([model], s.num_requests_running)
        waiting.add_metric([model], s.num_requests_waiting)
        kv_usage.add_metric([model], s.kv_cache_usage)
        prompt.add_metric([model], s.prompt_tokens_total)
        generated.add_metric([model], s.generation_tokens_total)
    yield from (running, waiting, kv_usage, prompt, generated)


def _pod_aggregates(stats: Mapping[ModelId, EngineStats], num_queued: int) -> Iterator[Metric]:
    """`num_queued` requests wait before the engines."""
    engines = list(stats.values())
    yield GaugeMetricFamily(
        "vllm:num_requests_running", "Requests in all engines", sum(s.num_requests_running for s in engines)
    )
    yield GaugeMetricFamily(
        "vllm:num_requests_waiting",
        "Requests in all queues, before the engines and in them",
        num_queued + sum(s.num_requests_waiting for s in engines),
    )
    yield GaugeMetricFamily(
        "vllm:kv_cache_usage_perc",
        "Highest KV usage, of 1",
        max((s.kv_cache_usage for s in engines), default=0.0),
    )


def _states(statuses: tuple[ModelStatus, ...]) -> Metric:
    states = GaugeMetricFamily("headrace_model_state", "1 for the state a model is in", labels=["model", "state"])
    for status in statuses:
        for state in ModelState:
            states.add_metric([status.id, state.value], 1.0 if status.state is state else 0.0)
    return states


def _residency(statuses: tuple[ModelStatus, ...]) -> Iterator[Metric]:
    held = GaugeMetricFamily("headrace_model_requests_held", "Requests that wait for the model", labels=["model"])
    memory = GaugeMetricFamily("headrace_model_memory_bytes", "What it takes of the memory budget", labels=["model"])
    for status in statuses:
        held.add_metric([status.id], status.num_held)
        memory.add_metric([status.id], status.memory_bytes or 0)
    yield from (held, memory)
