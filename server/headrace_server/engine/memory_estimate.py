"""How much memory an engine will take, from what is known before it starts. Pure.

An estimate decides whether a model may start, and counts until the engine has been measured. It is rather too large
than too small: what does not fit after all takes the machine's memory, and other engines with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from headrace_server.engine.vllm_arguments import CPU_DEFAULTS, GIB, GPU_DEFAULTS

# One of vLLM's processes (EngineCore, worker) without weights and cache: interpreter, imported modules, what torch
# reserves. Measured on a CPU, of engines that were forked (`make bench-swap`, row `memory`): 0.35 GiB for SmolLM2 in
# bfloat16, 0.4 in float32, 0.2 for MiniLM.
PROCESS_BYTES = 45 * GIB // 100
# What vLLM takes of a GPU is a share of it, whatever the model needs.
GPU_MEMORY_UTILIZATION = float(str(GPU_DEFAULTS["gpu_memory_utilization"]))

_CPU_KV_CACHE_BYTES = int(str(CPU_DEFAULTS["kv_cache_memory_bytes"]))
_ELEMENT_BYTES: Mapping[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class EngineSize:
    """What the memory of an engine depends on.

    Attributes:
        weight_bytes: as stored.
        stored_dtype: that of most of them, named as in torch (`ModelFacts.dtype`); None: not known.
        dtype: what the engine computes in; None or `auto`: what is stored.
        has_kv_cache: it generates text, or reads from left to right; encoders have none.
        kv_cache_memory_bytes: for each worker; None: vLLM's arguments leave it to the default.
        gpu_memory_utilization: the share that the engine takes of each GPU; None: the default.
        num_workers: tensor-parallel times pipeline-parallel size.
        device_bytes: memory of each GPU of this machine; empty: engines compute on the processor.
    """

    weight_bytes: int
    stored_dtype: str | None = None
    dtype: str | None = None
    has_kv_cache: bool = True
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    num_workers: int = 1
    device_bytes: tuple[int, ...] = ()


def estimated_memory(size: EngineSize) -> int:
    """Bytes that the engine will take: of the GPUs where there are any, else of the machine's memory.

    On GPUs vLLM fills its share of each with KV cache (`gpu_memory_utilization`), unless the cache's size is given.
    Rounded down for each GPU, so that a model at the default fits into a budget of the same share.
    """
    if not size.device_bytes:
        return _weight_bytes(size) + size.num_workers * _cache_bytes(size) + (1 + size.num_workers) * PROCESS_BYTES
    if size.kv_cache_memory_bytes is not None:
        return _weight_bytes(size) + size.num_workers * (_cache_bytes(size) + PROCESS_BYTES)
    share = GPU_MEMORY_UTILIZATION if size.gpu_memory_utilization is None else size.gpu_memory_utilization
    return size.num_workers * int(share * max(size.device_bytes))


def _weight_bytes(size: EngineSize) -> int:
    """As the engine holds them. Quantised weights stay as they are."""
    stored = _ELEMENT_BYTES.get(size.stored_dtype or "")
    computed = _ELEMENT_BYTES.get(size.dtype or "")
    if stored is None or computed is None:
        return size.weight_bytes
    return size.weight_bytes * computed // stored


def _cache_bytes(size: EngineSize) -> int:
    if not size.has_kv_cache:
        return 0
    return _CPU_KV_CACHE_BYTES if size.kv_cache_memory_bytes is None else size.kv_cache_memory_bytes
