"""How much memory an engine's processes take, as the kernel or the GPU's driver counts it.

What processes share (libraries, and everything that forked ones have in common) counts in proportion, so that the sum
over all engines is what the machine has given away. vLLM fills its key-value cache with zeros when it makes it, so that
all of it is counted from the start (seen: 1.85 GB resident with a cache of 1 GiB, before any request).
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PROPORTIONAL = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)
_KIB = 1024


def machine_memory(process_ids: Iterable[int]) -> int | None:
    """Bytes of the machine's memory; processes that have ended take none. None where nobody can tell."""
    sizes = [_memory_of(process_id) for process_id in process_ids]
    return sum(size for size in sizes if size is not None) if any(sizes) else None


def _memory_of(process_id: int) -> int | None:
    try:
        found = _PROPORTIONAL.search(Path(f"/proc/{process_id}/smaps_rollup").read_text())
    except OSError:
        return _resident(process_id)
    return int(found[1]) * _KIB if found else None


def _resident(process_id: int) -> int | None:
    """Where the kernel does not tell shares apart."""
    import psutil  # type: ignore[import-untyped]

    try:
        resident: int = psutil.Process(process_id).memory_info().rss
    except psutil.Error:
        return None
    return resident


def gpu_memory(process_ids: Iterable[int]) -> int | None:
    """Bytes of memory on all GPUs of NVIDIA's. None where the driver does not know these processes: in a container it
    may number them otherwise."""
    from vllm.third_party import pynvml

    ours, used = set(process_ids), 0
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            used += sum(_used(process, ours) for process in _running(pynvml, index))
    except pynvml.NVMLError:
        return None
    return used or None


def _running(pynvml: Any, index: int) -> Iterable[Any]:
    processes: Iterable[Any] = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
    return processes


def _used(process: Any, ours: set[int]) -> int:
    return (process.usedGpuMemory or 0) if process.pid in ours else 0
