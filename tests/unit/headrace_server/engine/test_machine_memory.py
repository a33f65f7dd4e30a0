"""What a machine has for engines, as its files and its driver tell it."""

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from headrace_server.engine.machine_memory import MachineMemory, allowed_cpus, machine_memory

MIB = 1024**2
GIB = 1024**3
PHYSICAL = 64 * GIB
NO_LIMIT = 9223372036854771712  # what the kernel writes for it in version 1
TWO_GPUS = "GPU-1aa, 81559\nGPU-2bb, 24576\n"


def written(root: Path, files: Mapping[str, str]) -> Path:
    """A file system with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


def memory_of(root: Path, *, listing: str = "", visible: str | None = None) -> MachineMemory:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return machine_memory(
        environment=environment, query_devices=lambda: listing, physical_bytes=lambda: PHYSICAL, root=root
    )


def test_without_gpus_and_limits_it_is_the_machines_memory(tmp_path: Path) -> None:
    assert memory_of(tmp_path) == MachineMemory(PHYSICAL)


# Control groups.


@pytest.mark.parametrize(
    ("files", "total"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "5000\n"}, 5000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000\n"}, 5000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000\n"}, 5000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, PHYSICAL),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "0\n"}, PHYSICAL),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{PHYSICAL + 1}\n"}, PHYSICAL),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/b/memory.max": "5000\n"}, PHYSICAL),
        ({"proc/self/cgroup": "0::/../c\n", "sys/fs/c/memory.max": "1\n", "sys/fs/cgroup/memory.max": "5000"}, 5000),
        ({"proc/self/cgroup": "broken", "sys/fs/cgroup/memory.max": "5000\n"}, PHYSICAL),
    ],
)
def test_a_limit_of_the_process_group_or_of_one_around_it_counts(
    tmp_path: Path, files: Mapping[str, str], total: int
) -> None:
    assert memory_of(written(tmp_path, files)).total_bytes == total


def test_the_narrowest_limit_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": "4000",
        "sys/fs/cgroup/a/b/memory.max": "5000",
    }
    assert memory_of(written(tmp_path, files)).total_bytes == 4000


@pytest.mark.parametrize(
    ("files", "total"),
    [
        ({"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "5000\n"}, 5000),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n"}, 5000),
        ({"sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{NO_LIMIT}\n"}, PHYSICAL),
        ({"sys/fs/cgroup/cpuset/another/memory.limit_in_bytes": "5000\n"}, PHYSICAL),
        ({"sys/fs/cgroup/memory/another/memory.limit_in_bytes": "5000\n"}, PHYSICAL),
    ],
)
def test_limits_of_the_first_version_count_as_well(tmp_path: Path, files: Mapping[str, str], total: int) -> None:
    groups = "9:name=systemd:/x\n4:hugetlb,memory:/a\n3:cpuset:/another\n0::/\n"
    assert memory_of(written(tmp_path, {"proc/self/cgroup": groups, **files})).total_bytes == total


# GPUs.


def test_where_there_are_gpus_it_is_theirs_together(tmp_path: Path) -> None:
    devices = (81559 * MIB, 24576 * MIB)
    assert memory_of(tmp_path, listing=TWO_GPUS) == MachineMemory(sum(devices), is_device=True, device_bytes=devices)


@pytest.mark.parametrize(
    ("visible", "mebibytes"),
    [
        ("0", [81559]),
        ("1", [24576]),
        ("1,0", [24576, 81559]),
        (" 1 , 0 ", [24576, 81559]),
        ("GPU-2bb", [24576]),
        ("GPU-2", [24576]),
        ("0,7,1", [81559]),
        ("0,-1,1", [81559]),
        ("1,", [24576]),
    ],
)
def test_gpus_that_are_hidden_from_this_process_do_not_count(
    tmp_path: Path, visible: str, mebibytes: list[int]
) -> None:
    assert memory_of(tmp_path, listing=TWO_GPUS, visible=visible).device_bytes == tuple(m * MIB for m in mebibytes)


@pytest.mark.parametrize("visible", ["", "-1", " ", "none", "7"])
def test_where_all_are_hidden_it_is_the_machines_memory(tmp_path: Path, visible: str) -> None:
    assert memory_of(tmp_path, listing=TWO_GPUS, visible=visible) == MachineMemory(PHYSICAL)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_driver_is_not_asked_where_all_gpus_are_hidden(visible: str) -> None:
    def fail() -> str:
        raise AssertionError("asked")

    machine_memory(environment={"CUDA_VISIBLE_DEVICES": visible}, query_devices=fail)


@pytest.mark.parametrize(
    "listing", ["", "No devices were found\n", "GPU-1, [N/A]\n", "garbage, more, of it\n", "\n,\n"]
)
def test_what_is_no_gpu_with_memory_is_none(tmp_path: Path, listing: str) -> None:
    assert memory_of(tmp_path, listing=listing) == MachineMemory(PHYSICAL)


@pytest.mark.parametrize("visible", [None, "1", "0,1"])
def test_a_gpu_without_memory_of_its_own_keeps_its_index(tmp_path: Path, visible: str | None) -> None:
    assert memory_of(tmp_path, listing="GPU-1, [N/A]\nGPU-2, 5\n", visible=visible).device_bytes == (5 * MIB,)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a program as the only one on the PATH, under the name of the driver's."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return install


def test_the_driver_is_asked_for_each_gpu_in_mebibytes(driver: Callable[[str], None]) -> None:
    driver('test "$*" = "--query-gpu=uuid,memory.total --format=csv,noheader,nounits" && echo "GPU-1aa, 81559"')
    assert machine_memory(environment={}).device_bytes == (81559 * MIB,)


def test_a_driver_that_fails_has_no_gpus(driver: Callable[[str], None]) -> None:
    driver('echo "GPU-1aa, 81559"; exit 9')
    assert not machine_memory(environment={}).is_device


def test_without_a_driver_it_is_this_machines_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    memory = machine_memory(environment={})
    assert memory.device_bytes == ()
    assert 0 < memory.total_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Processors.


def test_of_each_core_the_first_processor_that_is_allowed_counts(tmp_path: Path) -> None:
    siblings = {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}
    root = written(
        tmp_path,
        {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{text}\n" for n, text in siblings.items()},
    )
    assert allowed_cpus(affinity=lambda: {0, 1, 4, 5}, root=root) == (0, 1)
    assert allowed_cpus(affinity=lambda: [5, 4, 1], root=root) == (1, 4)


def test_where_cores_cannot_be_told_apart_all_processors_count(tmp_path: Path) -> None:
    assert allowed_cpus(affinity=lambda: {3, 1, 0}, root=tmp_path) == (0, 1, 3)


def test_this_process_may_use_some_processor() -> None:
    cpus = allowed_cpus()
    assert 0 < len(cpus) <= (os.cpu_count() or 1)
