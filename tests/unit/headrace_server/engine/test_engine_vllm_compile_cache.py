"""The folder in which compiled code is kept."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.engine.vllm_compile_cache import (
    cache_key,
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
