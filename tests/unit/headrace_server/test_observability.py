"""Metrics that machines read, and log lines that carry their request's id and nothing private."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace_server.domain import EngineStats, ModelId, ModelState, ModelStatus, RequestId
from headrace_server.observability.logging import (
    JsonFormatter,
    TextFormatter,
    configure_logging,
    current_request_id,
)
from headrace_server.observability.metrics import Metrics

A, B = ModelId("a"), ModelId("b")
STATS = {
    A: EngineStats(1, 2, 0.25, prompt_tokens_total=10, generation_tokens_total=20),
    B: EngineStats(3, 4, 0.75, prompt_tokens_total=30, generation_tokens_total=40),
}
STATUSES = (
    ModelStatus(A, ModelState.READY, "s", 0, num_held=2, memory_bytes=700),
    ModelStatus(B, ModelState.FAILED, "s", 0),
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def watching(clock: Clock | None = None) -> Metrics:
    metrics = Metrics(clock or Clock())
    metrics.watch(lambda: STATS, lambda: STATUSES)
    return metrics


def test_the_pod_aggregates_stand_under_vllms_names_without_labels() -> None:
    seen = samples(watching())
    assert seen["vllm:num_requests_running", frozenset()] == 4
    assert seen["vllm:num_requests_waiting", frozenset()] == 6
    assert seen["vllm:kv_cache_usage_perc", frozenset()] == 0.75
    lines = watching().exposition().decode().splitlines()
    assert "vllm:num_requests_running 4.0" in lines
    assert "vllm:num_requests_waiting 6.0" in lines
    assert "vllm:kv_cache_usage_perc 0.75" in lines


def test_the_pod_aggregates_are_zero_while_no_engine_runs() -> None:
    metrics = Metrics(Clock())
    metrics.watch(dict, tuple)
    seen = samples(metrics)
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert seen[name, frozenset()] == 0


def test_each_engine_has_its_own_counters() -> None:
    seen = samples(watching())
    model = frozenset({("model", "b")})
    assert seen["headrace_engine_requests_running", model] == 3
    assert seen["headrace_engine_requests_waiting", model] == 4
    assert seen["headrace_engine_kv_cache_usage_ratio", model] == 0.75
    assert seen["headrace_engine_prompt_tokens_total", model] == 30
    assert seen["headrace_engine_generation_tokens_total", model] == 40


def test_a_model_is_in_exactly_one_state() -> None:
    seen = samples(watching())
    for status in STATUSES:
        states = {
            state: seen["headrace_model_state", frozenset({("model", status.id), ("state", state.value)})]
            for state in ModelState
        }
        assert states == {state: float(state is status.state) for state in ModelState}


def test_requests_are_counted_by_route_and_status() -> None:
    metrics = Metrics(Clock())
    for status in (200, 200, 499):
        metrics.request_done(route="/v1/models", status=status, seconds=0.3)
    seen = samples(metrics)
    assert seen["headrace_requests_total", frozenset({("route", "/v1/models"), ("status", "200")})] == 2
    assert seen["headrace_requests_total", frozenset({("route", "/v1/models"), ("status", "499")})] == 1
    assert seen["headrace_request_duration_seconds_count", frozenset({("route", "/v1/models")})] == 3


def test_each_model_has_what_it_takes_and_who_waits_for_it() -> None:
    seen = samples(watching())
    for name, values in (("headrace_model_requests_held", (2, 0)), ("headrace_model_memory_bytes", (700, 0))):
        assert (seen[name, frozenset({("model", "a")})], seen[name, frozenset({("model", "b")})]) == values


def test_what_happens_to_models_is_counted() -> None:
    metrics = watching()
    metrics.model_loaded(A, 4.0)
    metrics.model_loaded(A, 6.0)
    metrics.model_load_failed(B)
    metrics.engine_died(A)
    seen = samples(metrics)
    assert seen["headrace_model_loads_total", frozenset({("model", "a"), ("outcome", "ready")})] == 2
    assert seen["headrace_model_loads_total", frozenset({("model", "b"), ("outcome", "failed")})] == 1
    assert seen["headrace_engine_deaths_total", frozenset({("model", "a")})] == 1
    assert seen["headrace_model_load_seconds_sum", frozenset({("model", "a")})] == 10
    assert seen["headrace_model_load_seconds_count", frozenset({("model", "a")})] == 2


def test_the_server_tells_of_its_budget_and_its_end_and_counts_from_nought() -> None:
    clock, is_draining = Clock(), False
    metrics = Metrics(clock)
    metrics.watch_server(models=[A], memory_budget_bytes=9000, is_draining=lambda: is_draining)
    seen = samples(metrics)
    assert seen["headrace_memory_budget_bytes", frozenset()] == 9000
    assert seen["headrace_draining", frozenset()] == 0
    assert seen["headrace_engine_deaths_total", frozenset({("model", "a")})] == 0
    for outcome in ("ready", "failed"):
        assert seen["headrace_model_loads_total", frozenset({("model", "a"), ("outcome", outcome)})] == 0
    is_draining = True
    clock.now += 1
    assert samples(metrics)["headrace_draining", frozenset()] == 1


def test_where_memory_is_not_bounded_there_is_no_budget() -> None:
    metrics = Metrics(Clock())
    metrics.watch_server(models=[], memory_budget_bytes=None, is_draining=lambda: False)
    assert ("headrace_memory_budget_bytes", frozenset()) not in samples(metrics)


def test_two_scrapes_within_half_a_second_cost_one_and_a_later_one_is_fresh() -> None:
    clock, num_reads = Clock(), 0

    def read() -> dict[ModelId, EngineStats]:
        nonlocal num_reads
        num_reads += 1
        return STATS

    metrics = Metrics(clock)
    metrics.watch(read, lambda: STATUSES)
    num_reads = 0
    body = metrics.exposition()
    clock.now += 0.49
    metrics.request_done(route="/x", status=200, seconds=0)
    assert metrics.exposition() is body
    assert num_reads == 1
    clock.now += 0.02
    assert b'route="/x"' in metrics.exposition()
    assert num_reads == 2


def record(message: str = "thing_done", **extra: object) -> logging.LogRecord:
    return logging.getLogger("headrace_server.test").makeRecord(
        "headrace_server.test", logging.INFO, "file", 1, message, (), None, extra=extra
    )


@pytest.fixture
def request_id() -> Iterator[str]:
    token = current_request_id.set(RequestId("req-1"))
    yield "req-1"
    current_request_id.reset(token)


def test_a_json_line_is_one_object_with_time_level_event_and_fields(request_id: str) -> None:
    at = record(status=200, path='a"b\nc')
    at.created, at.msecs = 0.0, 7.0
    text = JsonFormatter().format(at)
    assert "\n" not in text
    assert json.loads(text) == {
        "time": "1970-01-01T00:00:00.007Z",
        "level": "info",
        "logger": "headrace_server.test",
        "event": "thing_done",
        "request_id": request_id,
        "status": 200,
        "path": 'a"b\nc',
    }


def test_a_json_line_outside_a_request_has_no_request_id_and_takes_any_value() -> None:
    line = json.loads(JsonFormatter().format(record(model=ModelState, path=b"x")))
    assert "request_id" not in line


def test_a_json_line_carries_the_traceback_in_one_line() -> None:
    failed = record()
    try:
        raise ValueError("odd")
    except ValueError:
        failed.exc_info = sys.exc_info()
    text = JsonFormatter().format(failed)
    assert "\n" not in text
    assert "ValueError: odd" in json.loads(text)["exception"]


def test_a_text_line_shows_fields_after_the_event_and_leaves_empty_ones_out() -> None:
    text = TextFormatter().format(record(model="m", detail=""))
    assert text.endswith("INFO thing_done model=m")


def test_a_text_line_stays_one_line_whatever_a_client_put_into_its_fields() -> None:
    text = TextFormatter().format(record(path="/x\n12:00:00 ERROR forged\r\x1b[31m"))
    assert text.isprintable()
    assert "forged" in text


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "headrace_server", "headrace_models")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize(("json_lines", "is_json"), [(True, True), (False, False), (None, True)])
def test_log_lines_go_to_standard_error_as_json_unless_people_read_them(
    capsys: pytest.CaptureFixture[str], json_lines: bool | None, is_json: bool
) -> None:
    configure_logging(level="info", json_lines=json_lines)
    logging.getLogger("headrace_server.x").info("shown")
    logging.getLogger("headrace_server.x").debug("hidden")
    logging.getLogger("somebody.else").info("hidden")
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("{") is is_json
    assert "shown" in line
