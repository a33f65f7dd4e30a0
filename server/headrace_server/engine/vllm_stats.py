"""vLLM's step statistics → `EngineStats`, through vLLM's stat-logger interface.

vLLM's own Prometheus logger is never used: it unregisters the collectors of every other engine in the process.
`record` is called on the event loop after every engine step and only copies numbers.
"""

from collections.abc import Callable

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from headrace_server.domain import EngineStats


class StepCounters:
    """The counters of one engine; `snapshot` may be called at any time."""

    def __init__(self) -> None:
        self._running = 0
        self._waiting = 0
        self._kv_cache_usage = 0.0
        self._prompt_tokens = 0
        self._generation_tokens = 0

    def scheduled(self, stats: SchedulerStats) -> None:
        self._running = stats.num_running_reqs
        self._waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        self._kv_cache_usage = stats.kv_cache_usage

    def generated(self, stats: IterationStats) -> None:
        self._prompt_tokens += stats.num_prompt_tokens
        self._generation_tokens += stats.num_generation_tokens

    def snapshot(self) -> EngineStats:
        return EngineStats(
            num_requests_running=self._running,
            num_requests_waiting=self._waiting,
            kv_cache_usage=self._kv_cache_usage,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
        )


class _StepLogger(StatLoggerBase):
    def __init__(self, counters: StepCounters) -> None:
        self._counters = counters

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._counters.scheduled(scheduler_stats)
        if iteration_stats is not None:
            self._counters.generated(iteration_stats)

    def log_engine_initialized(self) -> None:
        """vLLM's interface asks for it; there is nothing to say."""


def step_logger(counters: StepCounters) -> Callable[[VllmConfig, int], StatLoggerBase]:
    """A vLLM stat-logger factory that feeds `counters`."""

    def make(_config: VllmConfig, _engine_index: int) -> StatLoggerBase:
        return _StepLogger(counters)

    return make
