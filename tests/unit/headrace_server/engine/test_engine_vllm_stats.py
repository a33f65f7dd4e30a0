"""The step counters, fed with vLLM's own statistics. Importing vLLM takes 10 s; no engine starts."""

import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from headrace_server.domain import EngineCapacity, EngineStats

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # importing vLLM warns about itself
    pytest.mark.timeout(120),
]


class Scene:
    """Counters behind the logger that vLLM makes of them."""

    def __init__(self) -> None:
        module = importlib.import_module("headrace_server.engine.vllm_stats")
        self.now = 50.0
        self.counters = module.StepCounters(lambda: self.now)
        self._logger = module.step_logger(self.counters)(None, [0])
        self._vllm = importlib.import_module("vllm.v1.metrics.stats")

    def step(self, *, after: float, running: int, elapsed_ms: float = 10.0, **counts: int) -> None:
        """A step ended so many seconds after the last one, and left so many running."""
        self.now += after
        names = ("num_ctx_requests", "num_ctx_tokens", "num_generation_requests", "num_generation_tokens")
        details: Any = None
        if counts:
            details = self._vllm.SchedulerIterationDetails(
                iteration_index=0, **(dict.fromkeys(names, 0) | counts), elapsed_ms=elapsed_ms
            )
        self._logger.record(self._vllm.SchedulerStats(num_running_reqs=running, iteration_details=details), None)

    @property
    def stats(self) -> EngineStats:
        stats: EngineStats = self.counters.snapshot()
        return stats


@pytest.fixture(scope="module", autouse=True)
def _vllm() -> None:
    """vLLM is imported before the first test's clock runs."""
    Scene()


def test_steps_and_what_is_in_them_add_up() -> None:
    scene = Scene()
    scene.step(after=0.0, running=2, num_ctx_tokens=100)
    scene.step(after=0.02, running=2, num_ctx_tokens=50, num_generation_requests=1, num_generation_tokens=1)
    scene.step(after=0.02, running=0, num_generation_requests=2, num_generation_tokens=2)
    assert (scene.stats.num_steps_total, scene.stats.prefill_tokens_total, scene.stats.decode_tokens_total) == (
        3,
        150,
        3,
    )


def test_a_step_takes_the_time_since_the_last_one_unless_the_engine_was_idle() -> None:
    scene = Scene()
    scene.step(after=9.0, running=1, num_ctx_tokens=1, elapsed_ms=30.0)
    scene.step(after=0.045, running=0, num_generation_requests=1, num_generation_tokens=1, elapsed_ms=30.0)
    assert scene.stats.step_seconds_total == pytest.approx(0.075)
    scene.step(after=60.0, running=1, num_ctx_tokens=1, elapsed_ms=25.0)
    assert scene.stats.step_seconds_total == pytest.approx(0.1)


def test_what_a_preempted_sequence_computes_again_is_prefill() -> None:
    scene = Scene()
    scene.step(after=0.0, running=2, num_generation_requests=2, num_generation_tokens=1 + 80)
    assert (scene.stats.prefill_tokens_total, scene.stats.decode_tokens_total) == (79, 2)


def test_an_engine_that_only_clears_up_makes_no_step() -> None:
    scene = Scene()
    scene.step(after=0.0, running=1, num_ctx_tokens=5)
    scene.step(after=0.01, running=0)
    assert scene.stats.num_steps_total == 1
    assert scene.stats.num_requests_running == 0


class TestCapacity:
    """`share_steps` and `capacity_of`, on vLLM's own scheduler settings."""

    def config(self, max_model_len: int = 4096, **scheduler: Any) -> Any:
        settings = importlib.import_module("vllm.config").SchedulerConfig(
            max_model_len=max_model_len, is_encoder_decoder=False, **{"max_num_batched_tokens": 512, **scheduler}
        )
        cache = SimpleNamespace(kv_cache_size_tokens=None, num_gpu_blocks=10, block_size=16)
        return SimpleNamespace(
            scheduler_config=settings, model_config=SimpleNamespace(max_model_len=max_model_len), cache_config=cache
        )

    @pytest.mark.parametrize(
        ("scheduler", "max_model_len", "longest"),
        [
            ({}, 4096, 256),
            ({}, 200, 200),  # vLLM refuses more than a prompt can have
            ({"long_prefill_token_threshold": 100}, 4096, 100),
            ({"enable_chunked_prefill": False}, 512, 0),
        ],
    )
    def test_a_long_prompt_leaves_half_of_each_step(
        self, scheduler: dict[str, Any], max_model_len: int, longest: int
    ) -> None:
        module = importlib.import_module("headrace_server.engine.vllm_capacity")
        config = self.config(max_model_len, **scheduler)
        module.share_steps(config)
        assert config.scheduler_config.long_prefill_token_threshold == longest
        config.scheduler_config.verify_max_model_len(max_model_len)

    def test_an_engines_capacity_is_what_its_configuration_came_to(self) -> None:
        capacity_of = importlib.import_module("headrace_server.engine.vllm_capacity").capacity_of
        config = self.config(max_num_seqs=7)
        assert capacity_of(config) == EngineCapacity(7, 512, 160)
        config.cache_config.kv_cache_size_tokens = 144  # where requests take blocks of several kinds
        assert capacity_of(config) == EngineCapacity(7, 512, 144)
        config.cache_config.kv_cache_size_tokens, config.cache_config.num_gpu_blocks = None, 0
        assert capacity_of(config) == EngineCapacity(7, 512, None)
        config.scheduler_config.long_prefill_token_threshold = 256
        assert capacity_of(config) == EngineCapacity(7, 512, None, 256)
