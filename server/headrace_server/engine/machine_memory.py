"""What this machine has for engines: memory, of its GPUs where it has any, and processors.

Asked once, before anything starts. What the system does not tell is left out of the answer and never an error: a
container may hide its limits, and a driver may be broken.
"""

import os
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

_MIB = 1024**2
# Without its persistence daemon a driver is loaded for each query, GPU by GPU.
_QUERY_SECONDS = 20.0
_QUERY = ("nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """`device_bytes` has the memory of each GPU that engines may use; `is_device`: there are any, and `total_bytes` is
    theirs together. Without, it is what this process and its children may use of the machine's memory."""

    total_bytes: int
    is_device: bool = False
    device_bytes: tuple[int, ...] = ()


def machine_memory(
    *,
    environment: Mapping[str, str] = os.environ,
    query_devices: Callable[[], str] | None = None,
    physical_bytes: Callable[[], int] | None = None,
    root: Path = Path("/"),
) -> MachineMemory:
    """The memory for engines. Runs `nvidia-smi` where there is one, for which the caller waits.

    `query_devices` returns what `nvidia-smi` prints, `root` is where `proc` and `sys` lie.
    """
    devices = _visible_devices(environment.get("CUDA_VISIBLE_DEVICES"), query_devices or _run_query)
    if devices:
        return MachineMemory(sum(devices), is_device=True, device_bytes=devices)
    return MachineMemory(min([(physical_bytes or _physical_bytes)(), *_cgroup_limits(root)]))


def allowed_cpus(*, affinity: Callable[[], Collection[int]] | None = None, root: Path = Path("/")) -> tuple[int, ...]:
    """The logical processors that this process may use, the first one of each core, in ascending order.

    The threads of a core share its arithmetic units, which computing threads saturate. All of them where the system
    does not tell cores apart.
    """
    first_of_core: dict[str, int] = {}
    for cpu in sorted((affinity or _affinity)()):
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        first_of_core.setdefault(_text(siblings) or f"only {cpu}", cpu)
    return tuple(first_of_core.values())


def _visible_devices(visible: str | None, query: Callable[[], str]) -> tuple[int, ...]:
    """The memory of each GPU that `CUDA_VISIBLE_DEVICES` leaves; CUDA reads it up to the first name of no GPU."""
    if visible is None:
        return tuple(device.memory_bytes for device in _devices(query()) if device.memory_bytes)
    names = [name.strip() for name in visible.split(",")]
    if names[0] in ("", "-1"):
        return ()
    devices = _devices(query())
    found = [next((device for device in devices if device.is_named(name)), None) for name in names]
    return tuple(device.memory_bytes for device in takewhile(bool, found) if device and device.memory_bytes)


@dataclass(frozen=True, slots=True)
class _Device:
    """A line of the listing. `memory_bytes` is 0 for a GPU without memory of its own, which has "[N/A]" there."""

    index: int
    uuid: str
    memory_bytes: int

    def is_named(self, name: str) -> bool:
        return name == str(self.index) or (name.startswith("GPU-") and self.uuid.startswith(name))


def _devices(listing: str) -> list[_Device]:
    devices = []
    for index, line in enumerate(listing.splitlines()):
        uuid, _, mebibytes = (part.strip() for part in line.partition(","))
        devices.append(_Device(index, uuid, int(mebibytes) * _MIB if mebibytes.isdecimal() else 0))
    return devices


def _run_query() -> str:
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _affinity() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _cgroup_limits(root: Path) -> Iterator[int]:
    """The limits of every control group that this process is in; those above "no limit" are larger than any memory.

    Inside a container the path may be the host's, of which only the root can be seen: that one is the container's.
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        match line.split(":", 2):
            case ["0", "", path]:
                yield from _limits(root / "sys/fs/cgroup", path, "memory.max")
            case [_, controllers, path] if "memory" in controllers.split(","):
                yield from _limits(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")


def _limits(mount: Path, path: str, name: str) -> Iterator[int]:
    group = PurePosixPath(path.lstrip("/"))
    groups = [PurePosixPath()] if ".." in group.parts else [group, *group.parents]
    for folder in groups:
        text = _text(mount / folder / name) or ""
        if text.isdecimal() and int(text) > 0:
            yield int(text)


def _text(path: Path) -> str | None:
    """The text of a small file of the system's, stripped; None where it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
