"""Prometheus metrics in a registry of our own, with bounded label sets.

Engines are not asked on a scrape: their latest counters are copied. The body is cached for half a second, so that
many scrapers cost as much as one. Under the `vllm:` names stand label-free sums for the whole process, in the form
that the Gateway API Inference Extension's endpoint picker reads.
"""

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from headrace_server.domain import EngineStats, ModelId, ModelState, ModelStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
_CACHE_SECONDS = 0.5
_DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

StatsReader = Callable[[], Mapping[ModelId, EngineStats]]
StatusReader = Callable[[], tuple[ModelStatus, ...]]


class Metrics:
    """This process's metrics. `watch` connects them to a pool; until then only requests are counted."""

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
        self._body = b""
        self._body_expires = float("-inf")

    def watch(self, stats: StatsReader, statuses: StatusReader) -> None:
        """Report these engines from now on."""
        self._registry.register(_EngineCollector(stats, statuses))

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
    def __init__(self, stats: StatsReader, statuses: StatusReader) -> None:
        self._stats = stats
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield from _per_model(stats)
        yield from _pod_aggregates(stats)
        yield _states(self._statuses())


def _per_model(stats: Mapping[ModelId, EngineStats]) -> Iterator[Metric]:
    running = GaugeMetricFamily("headrace_engine_requests_running", "Requests in the engine's batch", labels=["model"])
    waiting = GaugeMetricFamily("headrace_engine_requests_waiting", "Requests in the engine's queue", labels=["model"])
    kv_usage = GaugeMetricFamily("headrace_engine_kv_cache_usage_ratio", "KV blocks in use, of 1", labels=["model"])
    prompt = CounterMetricFamily("headrace_engine_prompt_tokens", "Prompt tokens computed", labels=["model"])
    generated = CounterMetricFamily("headrace_engine_generation_tokens", "Tokens generated", labels=["model"])
    for model, s in stats.items():
        running.add_metric([model], s.num_requests_running)
        waiting.add_metric([model], s.num_requests_waiting)
        kv_usage.add_metric([model], s.kv_cache_usage)
        prompt.add_metric([model], s.prompt_tokens_total)
        generated.add_metric([model], s.generation_tokens_total)
    yield from (running, waiting, kv_usage, prompt, generated)


def _pod_aggregates(stats: Mapping[ModelId, EngineStats]) -> Iterator[Metric]:
    engines = list(stats.values())
    yield GaugeMetricFamily(
        "vllm:num_requests_running", "Requests in all engines", sum(s.num_requests_running for s in engines)
    )
    yield GaugeMetricFamily(
        "vllm:num_requests_waiting", "Requests in all queues", sum(s.num_requests_waiting for s in engines)
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
