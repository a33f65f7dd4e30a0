"""vLLM's step statistics → `EngineStats`, through vLLM's stat-logger interface.

vLLM's own Prometheus logger is kept out: it unregisters the collectors of every other engine in the process. So are
its statistics of every token, of which only two sums were used: those are counted where tokens pass by (`vllm_meter`).
`record` is called on the event loop after every engine step and only adds numbers.
"""

import time
from collections.abc import Callable

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerIterationDetails, SchedulerStats

from headrace_server.domain import EngineStats


class StepCounters:
    """The counters of one engine; `snapshot` may be called at any time. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_step_ended = 0.0
        self._running = 0
        self._waiting = 0
        self._kv_cache_usage = 0.0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._num_steps = 0
        self._step_seconds = 0.0
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._num_preemptions = 0

    def scheduled(self, stats: SchedulerStats) -> None:
        """A step is over."""
        if stats.iteration_details is not None and not stats.iteration_details.is_dummy:
            self._stepped(stats.iteration_details)
        self._running = stats.num_running_reqs
        self._waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        self._kv_cache_usage = stats.kv_cache_usage

    def _stepped(self, step: SchedulerIterationDetails) -> None:
        """A step took the time since the one before, if that left anything to do: what vLLM measures is how long its
        engine waited for the model, which on a GPU is less. What preempted sequences compute again is like a prompt."""
        now = self._clock()
        seconds = now - self._last_step_ended if self._running else step.elapsed_ms / 1000
        self._last_step_ended = now
        num_again = max(0, step.num_generation_tokens - step.num_generation_requests)
        self._num_steps += 1
        self._step_seconds += seconds
        self._prefill_tokens += step.num_ctx_tokens + num_again
        self._decode_tokens += step.num_generation_requests

    def preempted(self, num_preemptions: int) -> None:
        """Sequences had to give their place up."""
        self._num_preemptions += num_preemptions

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
            num_steps_total=self._num_steps,
            step_seconds_total=self._step_seconds,
            prefill_tokens_total=self._prefill_tokens,
            decode_tokens_total=self._decode_tokens,
            num_preemptions_total=self._num_preemptions,
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
