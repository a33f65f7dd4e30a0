"""vLLM's step statistics → `EngineStats`, through vLLM's stat-logger interface.

vLLM's own Prometheus logger is kept out: it unregisters the collectors of every other engine in the process. So are
its statistics of every token, of which only two sums were used: those are counted where tokens pass by. `record` is
called on the event loop after every engine step and only copies numbers.
"""

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerBase
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

    def began(self, num_prompt_tokens: int) -> None:
        """A prompt has been worked through: its first token is here."""
        self._prompt_tokens += num_prompt_tokens

    def generated(self, num_tokens: int) -> None:
        """Tokens have come."""
        self._generation_tokens += num_tokens

    def snapshot(self) -> EngineStats:
        return EngineStats(
            num_requests_running=self._running,
            num_requests_waiting=self._waiting,
            kv_cache_usage=self._kv_cache_usage,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
        )


class _StepLogger(PrometheusStatLogger):
    """A logger of vLLM's Prometheus kind that knows no Prometheus: vLLM adds its own to whatever loggers it is given,
    unless one of them is of that kind."""

    counters: StepCounters

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
        """What vLLM calls; its own constructor would unregister collectors and make some eighty metrics."""

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Called after every step."""
        if scheduler_stats is not None:
            self.counters.scheduled(scheduler_stats)

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Not counted; engines do not sleep here."""

    def record_admission_rejection(self, reason: str) -> None:
        """Not counted; vLLM's own limits are the operator's."""

    def log(self) -> None:
        """Not logged; `/metrics` has it."""

    def log_engine_initialized(self) -> None:
        """vLLM's interface asks for it; there is nothing to say."""


def step_logger(counters: StepCounters) -> type[StatLoggerBase]:
    """A vLLM stat logger that feeds `counters`. A class, because vLLM looks at the kind before it makes one."""
    return type("StepLogger", (_StepLogger,), {"counters": counters})
