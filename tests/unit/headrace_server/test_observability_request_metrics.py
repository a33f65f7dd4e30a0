"""Requests in numbers, under labels that clients cannot grow."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headrace_server.domain import ModelId, ServiceClass, TenantId
from headrace_server.observability.metrics import Metrics
from headrace_server.observability.request_metrics import OTHER_TENANTS, RequestMetrics

A = ModelId("a")
KNOWN = TenantId("mill")
LABELS = frozenset({("model", "a"), ("class", "batch"), ("tenant_class", "mill")})


def samples(requests: RequestMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    registry = CollectorRegistry()
    registry.register(requests)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_a_histogram_counts_each_value_in_the_buckets_that_hold_it() -> None:
    requests = RequestMetrics([KNOWN])
    ttft = requests.meters(A, ServiceClass.BATCH, KNOWN).ttft
    for seconds in (0.01, 0.3, 0.3, 1000.0):
        ttft.observe(seconds)
    seen = samples(requests)
    name = "headrace_time_to_first_token_seconds"
    counts = {le: seen[f"{name}_bucket", LABELS | {("le", le)}] for le in ("0.01", "0.025", "0.5", "120.0", "+Inf")}
    assert counts == {"0.01": 1, "0.025": 1, "0.5": 3, "120.0": 3, "+Inf": 4}
    assert seen[f"{name}_count", LABELS] == 4
    assert seen[f"{name}_sum", LABELS] == pytest.approx(1000.61)


def test_tokens_refusals_and_preemptions_are_counted() -> None:
    requests = RequestMetrics([KNOWN])
    meters = requests.meters(A, ServiceClass.BATCH, KNOWN)
    meters.num_computed_tokens, meters.num_cached_tokens, meters.num_output_tokens = 5, 6, 7
    meters.refused["queue_full"] += 2
    meters.num_preempted = 3
    seen = samples(requests)
    for kind, number in (("computed", 5), ("cached", 6), ("output", 7)):
        assert seen["headrace_tokens_total", LABELS | {("kind", kind)}] == number
    assert seen["headrace_refusals_total", LABELS | {("reason", "queue_full")}] == 2
    assert seen["headrace_preemptions_total", LABELS] == 3


def test_tenants_that_nobody_configured_share_a_label() -> None:
    requests = RequestMetrics([KNOWN])
    shared = {id(requests.meters(A, ServiceClass.BATCH, TenantId(f"t{number}"))) for number in range(100)}
    assert len(shared) == 1
    assert id(requests.meters(A, ServiceClass.BATCH, KNOWN)) not in shared
    seen = [dict(labels) for name, labels in samples(requests) if name == "headrace_preemptions_total"]
    assert {labels["tenant_class"] for labels in seen} == {OTHER_TENANTS, KNOWN}


def test_who_waits_and_runs_is_asked_on_a_scrape() -> None:
    requests = RequestMetrics()
    requests.queued = lambda: {(A, ServiceClass.BATCH): (4, 2)}
    seen = samples(requests)
    labels = frozenset({("model", "a"), ("class", "batch")})
    assert (seen["headrace_requests_waiting", labels], seen["headrace_requests_running", labels]) == (4, 2)


def test_the_pods_queue_is_ours_and_the_engines() -> None:
    metrics, requests = Metrics(), RequestMetrics()
    requests.queued = lambda: {(A, ServiceClass.BATCH): (4, 2), (A, ServiceClass.STANDARD): (1, 0)}
    metrics.watch(dict, tuple)
    metrics.watch_requests(requests)
    lines = metrics.exposition().decode().splitlines()
    assert "vllm:num_requests_waiting 5.0" in lines
    assert "vllm:num_requests_running 0.0" in lines
