"""What vLLM's processes find in their environment."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.engine.vllm_environment import (
    binding,
    cache_variables,
    engine_variables,
    set_defaults,
    with_libraries,
)

BIND = "VLLM_CPU_OMP_THREADS_BIND"
NO_DYNAMO = "TORCHDYNAMO_DISABLE"


@pytest.mark.parametrize(
    ("cpus", "num_ranks", "expected"),
    [
        ("3", 1, "3"),
        ("0-3,8", 1, "0,1,2,3,8"),
        ("0-3,8", 2, "0,1,2|3,8"),
        ("0-3", 4, "0|1|2|3"),
        ("4,5", 3, "4|5|4"),
    ],
)
def test_processors_are_shared_out_to_ranks_in_their_order(cpus: str, num_ranks: int, expected: str) -> None:
    assert binding(cpus, num_ranks) == expected


@given(st.lists(st.integers(0, 255), min_size=1, max_size=64, unique=True), st.integers(1, 16))
def test_every_rank_gets_processors_and_no_two_shares_differ_by_more_than_one(cpus: list[int], num_ranks: int) -> None:
    shares = [share.split(",") for share in binding(",".join(map(str, cpus)), num_ranks).split("|")]
    assert len(shares) == num_ranks
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if num_ranks <= len(cpus):
        assert [int(cpu) for share in shares for cpu in share] == cpus


@pytest.mark.parametrize("cpus", ["", "a", "1-", "1,,2"])
def test_processors_that_cannot_be_read_are_an_error(cpus: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        binding(cpus, 1)


def test_what_is_meant_for_one_engine_stays_out_of_the_servers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NO_DYNAMO, raising=False)
    before = dict(os.environ)
    one = engine_variables(tmp_path / "1", cpus="0", num_ranks=1, eager_on_cpu=True)
    other = engine_variables(tmp_path / "2", cpus="1", num_ranks=1, eager_on_cpu=False)
    assert (one[BIND], other[BIND]) == ("0", "1")
    assert (one[NO_DYNAMO], other[NO_DYNAMO]) == ("1", "0")
    assert (one["TMPDIR"], other["TMPDIR"]) == (str(tmp_path / "1"), str(tmp_path / "2"))
    assert dict(os.environ) == before


def test_without_processors_the_engine_decides_or_the_operator(tmp_path: Path) -> None:
    assert BIND not in engine_variables(tmp_path, cpus=None, num_ranks=1, eager_on_cpu=True)


@pytest.mark.parametrize("eager_on_cpu", [True, False])
def test_the_operator_decides_on_compiling_if_they_want_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, eager_on_cpu: bool
) -> None:
    monkeypatch.setenv(NO_DYNAMO, "0")
    assert NO_DYNAMO not in engine_variables(tmp_path, cpus=None, num_ranks=1, eager_on_cpu=eager_on_cpu)


def test_on_a_gpu_nothing_is_said_of_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NO_DYNAMO, raising=False)
    assert NO_DYNAMO not in engine_variables(tmp_path, cpus=None, num_ranks=1, eager_on_cpu=None)


def test_an_engine_keeps_the_number_of_ranks_that_vllm_configured_it_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    variables = engine_variables(tmp_path, cpus=None, num_ranks=2, eager_on_cpu=None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # of the engine that is configured next
    assert variables["LOCAL_WORLD_SIZE"] == "2"


def test_every_compiler_keeps_its_work_in_the_folder(tmp_path: Path) -> None:
    folders = [Path(value) for value in cache_variables(tmp_path).values()]
    assert len(set(folders)) == 3
    assert all(folder.parent == tmp_path for folder in folders)


def test_what_the_operator_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HF_HUB_OFFLINE": "0"})
    set_defaults(tmp_path)
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert os.environ["TMPDIR"] == str(tmp_path)


@pytest.fixture
def packages(tmp_path: Path) -> tuple[Path, Path]:
    """torch and vLLM, each with its library."""
    for library in ("torch/lib/libgomp.so.1", "vllm/libs/libtcmalloc_minimal.so.4"):
        (tmp_path / library).parent.mkdir(parents=True)
        (tmp_path / library).touch()
    return tmp_path / "torch", tmp_path / "vllm"


def test_libraries_are_preloaded_as_vllm_does_for_its_workers(packages: tuple[Path, Path]) -> None:
    torch, vllm = packages
    allocator, openmp = f"{vllm}/libs/libtcmalloc_minimal.so.4", f"{torch}/lib/libgomp.so.1"
    assert with_libraries("", torch, vllm) == f"{allocator}:{openmp}"
    assert with_libraries("/lib/libfoo.so", torch, vllm) == f"{allocator}:/lib/libfoo.so:{openmp}"
    assert with_libraries("/lib/libiomp5.so", torch, vllm) == f"{allocator}:/lib/libiomp5.so"
    assert with_libraries("/lib/libtcmalloc.so", torch, vllm) == f"/lib/libtcmalloc.so:{openmp}"


def test_libraries_that_are_not_there_are_not_preloaded(tmp_path: Path) -> None:
    assert with_libraries("", tmp_path / "torch", tmp_path / "vllm") == ""
