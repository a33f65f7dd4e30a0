"""How much an engine of vLLM takes in a step, and what keeps one prompt from taking all of it."""

from vllm.config import VllmConfig

from headrace_server.domain import EngineCapacity
from headrace_server.engine.base import longest_chunk


def share_steps(config: VllmConfig) -> None:
    """Leave room in every step beside a long prompt, unless it is alone. Before the engine is made.

    vLLM serves running prompts first and would fill step after step with one of them; whoever comes meanwhile, and
    is more urgent, would wait for all of it.
    """
    scheduler = config.scheduler_config
    if scheduler.enable_chunked_prefill and scheduler.long_prefill_token_threshold == 0:
        longest = longest_chunk(scheduler.max_num_batched_tokens)
        scheduler.long_prefill_token_threshold = min(longest, config.model_config.max_model_len)


def capacity_of(config: VllmConfig) -> EngineCapacity:
    """What an engine has, once it has started: its KV cache is sized last."""
    scheduler, cache = config.scheduler_config, config.cache_config
    kv_cache_tokens = cache.kv_cache_size_tokens or (cache.num_gpu_blocks or 0) * cache.block_size
    return EngineCapacity(
        scheduler.max_num_seqs,
        scheduler.max_num_batched_tokens,
        kv_cache_tokens or None,
        scheduler.long_prefill_token_threshold or None,
    )
