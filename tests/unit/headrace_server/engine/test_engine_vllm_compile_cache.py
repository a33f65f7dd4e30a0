"""The folder in which compiled code is kept."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.engine.vllm_compile_cache import (
    cache_key,
    heal_cache,
    opened_cache,
    processor_facts,
    software_facts,
)

FACTS = st.dictionaries(st.text("abc", max_size=4), st.text("xyz =\n", max_size=4), max_size=4)
CPUINFO = """processor : 0
model name : A 1
flags : fpu avx512f

processor : 1
model name : B 2
flags : fpu
"""


@given(FACTS)
def test_a_key_is_a_name_and_does_not_depend_on_the_order_of_facts(facts: dict[str, str]) -> None:
    key = cache_key(facts)
    assert key == cache_key(dict(reversed(facts.items())))
    assert key.replace("-", "").isalnum()


@given(FACTS, FACTS)
def test_other_facts_have_another_key(one: dict[str, str], other: dict[str, str]) -> None:
    assert (cache_key(one) == cache_key(other)) == (one == other)


def test_the_first_processor_is_described_by_what_it_is_and_can() -> None:
    facts = processor_facts(CPUINFO.splitlines())
    assert {"model name": "A 1", "flags": "fpu avx512f"}.items() <= facts.items()
    other = processor_facts(CPUINFO.replace("avx512f", "avx2").splitlines())
    assert cache_key(facts) != cache_key(other)


def test_versions_of_what_compiles_are_facts() -> None:
    assert "python" in software_facts()


def test_a_new_key_removes_what_older_ones_kept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    old = opened_cache(tmp_path, cache_key({"torch": "1"}))
    assert old is not None
    (old / "compiled").touch()
    new = opened_cache(tmp_path, cache_key({"torch": "2"}))
    assert new is not None
    assert {path.name for path in tmp_path.iterdir()} == {new.name, "notes"}


def test_a_key_that_is_there_keeps_what_it_has(tmp_path: Path) -> None:
    key = cache_key({})
    folder = opened_cache(tmp_path / "models" / "m", key)
    assert folder is not None
    (folder / "compiled").touch()
    assert opened_cache(tmp_path / "models" / "m", key) == folder
    assert (folder / "compiled").exists()


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert opened_cache(tmp_path / "file", cache_key({})) is None
    assert [record.message for record in caplog.records] == ["compile_cache_off"]


class Starts:
    """An engine that fails on a cache that holds anything, as often as it is started."""

    def __init__(self, folder: Path, *, always_fails: bool = False) -> None:
        self._folder = folder
        self._always_fails = always_fails
        self.num_starts = 0

    def start(self) -> str:
        self.num_starts += 1
        if self._always_fails or self._folder.is_dir():
            raise RuntimeError("Failed to import")
        return "up"


def filled(folder: Path) -> Path:
    (folder / "inductor").mkdir(parents=True)
    return folder


def test_a_start_that_fails_on_what_was_kept_is_tried_once_more_without_it(tmp_path: Path) -> None:
    starts = Starts(filled(tmp_path / "v1"))
    assert heal_cache(starts.start, tmp_path / "v1", is_bad=lambda: True) == "up"
    assert starts.num_starts == 2


def test_a_start_that_fails_without_it_too_fails(tmp_path: Path) -> None:
    starts = Starts(filled(tmp_path / "v1"), always_fails=True)
    with pytest.raises(RuntimeError):
        heal_cache(starts.start, tmp_path / "v1", is_bad=lambda: True)
    assert starts.num_starts == 2


@pytest.mark.parametrize(("is_filled", "is_bad"), [(False, True), (True, False)])
def test_a_start_that_fails_for_other_reasons_is_not_repeated(tmp_path: Path, *, is_filled: bool, is_bad: bool) -> None:
    folder = filled(tmp_path / "v1") if is_filled else tmp_path / "v1"
    starts = Starts(folder, always_fails=True)
    with pytest.raises(RuntimeError):
        heal_cache(starts.start, folder, is_bad=lambda: is_bad)
    assert starts.num_starts == 1
    assert folder.exists() == is_filled


def test_without_a_cache_a_failure_is_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        heal_cache(Starts(tmp_path).start, None, is_bad=lambda: True)
