"""The line that a loading process leaves for the server."""

from pathlib import Path

import pytest

from headrace_models.errors import FetchFailed
from headrace_server.domain import ModelId
from headrace_server.engine.base import EngineSpec, StoredWeights
from headrace_server.engine.vllm_load_report import MAX_REASON_CHARS, report_failure, report_path, take_report


def test_the_reason_is_read_once(tmp_path: Path) -> None:
    report_failure(tmp_path / "why", FetchFailed("the registry wants other credentials\nsecond line"))
    assert take_report(tmp_path / "why") == "the registry wants other credentials"
    assert take_report(tmp_path / "why") is None


def test_the_first_process_that_fails_is_heard(tmp_path: Path) -> None:
    report_failure(tmp_path / "why", FetchFailed("first"))
    report_failure(tmp_path / "why", FetchFailed("second"))
    assert take_report(tmp_path / "why") == "first"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("weights are missing\nx"), "ValueError: weights are missing"),
        (ValueError(), "ValueError"),
        (FetchFailed(" \n"), "FetchFailed"),
        (FetchFailed("x" * 1000), "x" * MAX_REASON_CHARS),
    ],
)
def test_a_reason_is_one_line(error: Exception, line: str, tmp_path: Path) -> None:
    report_failure(tmp_path / "why", error)
    assert take_report(tmp_path / "why") == line


def test_where_nothing_can_be_written_nothing_is_said(tmp_path: Path) -> None:
    report_failure(tmp_path / "gone" / "why", FetchFailed("x"))
    assert take_report(tmp_path / "gone" / "why") is None


def test_every_model_has_a_place_of_its_own_in_the_scratch_folder(tmp_path: Path) -> None:
    weights = StoredWeights(tmp_path, "name-0123456789ab")
    spec = EngineSpec(ModelId("org/name"), "vllm", scratch=tmp_path, store=weights)
    assert report_path(spec) == tmp_path / "name-0123456789ab.failure"
    assert report_path(EngineSpec(ModelId("m"), "vllm", scratch=tmp_path)) is None
    assert report_path(EngineSpec(ModelId("m"), "vllm", store=weights)) is None
