"""The environment variables under which vLLM runs: the same for the whole process, and those of one engine.

The first are set in this process before vLLM is imported, where the operator has not said otherwise. The second never
are: several engines live in one process, and none may see another's. They go to an engine's own processes
(`vllm_processes`). Imports no vLLM.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

# Spoken to vLLM and the libraries under it.
_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings tell of kernels that a CPU does not have
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",  # engines load from a directory; whatever is missing there is an error, not a download
    "TOKENIZERS_PARALLELISM": "false",
    # What would only tell an operator of things that nobody here can change.
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}
_CPU_DEFAULTS = {
    # What it keeps ahead of time cannot be loaded again ("'function' object has no attribute 'finalize_loading'").
    "VLLM_USE_AOT_COMPILE": "0",
    # vLLM sets these two when it is configured; a process that is forked has read them before.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
}
_BIND = "VLLM_CPU_OMP_THREADS_BIND"
_NO_DYNAMO = "TORCHDYNAMO_DISABLE"
_PRELOAD = "LD_PRELOAD"
_OPENMP = ("libgomp", "libiomp", "libomp")


def set_defaults(scratch: Path | None) -> None:
    """Set what holds for the whole process. vLLM and torch leave sockets and files in the temporary folder; `scratch`
    is one that somebody removes. Before their import, because they remember it."""
    for name, value in (_DEFAULTS | (_CPU_DEFAULTS if is_cpu_build() else {})).items():
        os.environ.setdefault(name, value)
    if scratch is not None:
        os.environ["VLLM_RPC_BASE_PATH"] = os.environ["TMPDIR"] = str(scratch)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch / "inductor"))


def engine_variables(folder: Path, *, cpus: str | None, num_ranks: int, eager_on_cpu: bool | None) -> dict[str, str]:
    """What one engine's processes get. `folder`: for their sockets and files. `eager_on_cpu`: whether nothing is
    compiled; None where there is a GPU."""
    variables = {"VLLM_RPC_BASE_PATH": str(folder), "TMPDIR": str(folder)}
    # vLLM sets it for the engine that it configured last.
    variables |= {name: os.environ[name] for name in ("LOCAL_WORLD_SIZE",) if name in os.environ}
    if cpus is not None:
        variables[_BIND] = binding(cpus, num_ranks)
    if eager_on_cpu is not None and _NO_DYNAMO not in os.environ:
        # Eager does not stop vLLM from compiling its log probabilities: 16 s for the first request with any.
        variables[_NO_DYNAMO] = "1" if eager_on_cpu else "0"
    return variables


def cache_variables(folder: Path) -> dict[str, str]:
    """What makes vLLM and the compilers under it keep their work in `folder`."""
    return {
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


def binding(cpus: str, num_ranks: int) -> str:
    """Processors ("0-3,8") as vLLM wants them, shared out evenly in their order: "0,1,2|3,8" for two ranks. Ranks
    share a processor where there are more of them.

    Raises:
        ValueError: `cpus` cannot be read.
    """
    processors = list(_processors(cpus))
    each, more = divmod(len(processors), num_ranks)
    if each == 0:
        return "|".join(str(processors[rank % len(processors)]) for rank in range(num_ranks))
    starts = [rank * each + min(rank, more) for rank in range(num_ranks + 1)]
    shares = [processors[start:end] for start, end in zip(starts, starts[1:], strict=False)]
    return "|".join(",".join(map(str, share)) for share in shares)


def _processors(cpus: str) -> Iterator[int]:
    for part in cpus.split(","):
        first, dash, last = part.partition("-")
        yield from range(int(first), int(last if dash else first) + 1)


def fork_server_environment() -> dict[str, str]:
    """What the process has to start with from which engines are forked. vLLM has its workers load these libraries
    before all others on CPUs, which counts only where a process starts afresh."""
    environment = dict(os.environ)
    if sys.platform == "linux" and is_cpu_build():
        environment[_PRELOAD] = with_libraries(environment.get(_PRELOAD, ""), _package("torch"), _package("vllm"))
    return environment


def with_libraries(preloaded: str, torch: Path, vllm: Path) -> str:
    """`preloaded` as `vllm.platforms.cpu` completes it: torch's OpenMP, and an allocator where vLLM brings one."""
    libraries = [library for library in preloaded.split(":") if library]
    if not any(name in preloaded for name in _OPENMP):
        found = [*torch.parent.glob("torch.libs/libgomp*.so*"), *torch.glob("lib/libgomp*.so*")]
        libraries += map(str, found[:1])
    if "libtcmalloc" not in preloaded:
        found = [*vllm.glob("libs/libtcmalloc_minimal*.so*"), *vllm.glob("libs/libtcmalloc.so*")]
        libraries[:0] = map(str, found[:1])
    return ":".join(libraries)


def is_cpu_build() -> bool:
    """Whether the installed torch knows no GPU; read from its files, because the answer is wanted before its import."""
    version = _package("torch") / "version.py"
    try:
        lines = version.read_text().splitlines()
    except OSError:
        return False
    values: Mapping[str, str] = {name.partition(":")[0].strip(): value.strip() for name, _, value in _assigned(lines)}
    return all(values.get(name, "None") == "None" for name in ("cuda", "hip", "xpu"))


def _assigned(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    return (line.partition("=") for line in lines if "=" in line)


def _package(name: str) -> Path:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else Path(name)
