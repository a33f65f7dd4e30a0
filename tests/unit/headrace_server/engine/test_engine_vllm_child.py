"""The first moments of a process of vLLM's."""

import logging
from pathlib import Path

import pytest

from headrace_server.engine.vllm_child import Birth, bound_processors, failure_path, process_marks, report_failures
from headrace_server.engine.vllm_load_report import take_report


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"GOMP_CPU_AFFINITY": "0 2 11"}, [0, 2, 11]),
        ({"OMP_PLACES": "{3,1}", "OMP_PROC_BIND": "true"}, [3, 1]),
        ({"KMP_AFFINITY": "granularity=fine,explicit,proclist=[4,5]"}, [4, 5]),
        ({"OMP_NUM_THREADS": "2"}, []),
    ],
)
def test_threads_are_bound_as_vllm_tells_the_library(environment: dict[str, str], expected: list[int]) -> None:
    assert bound_processors(environment) == expected


@pytest.mark.parametrize("name", ["vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor"])
def test_the_first_exception_that_vllm_logs_is_what_is_told(tmp_path: Path, name: str) -> None:
    report = failure_path(tmp_path)
    logger = logging.getLogger(name)
    handler = report_failures(report)
    try:
        logger.error("no exception")
        for reason in ("no memory", "see above"):
            try:
                raise ValueError(reason)
            except ValueError:
                logger.exception("WorkerProc failed to start.")
    finally:
        for owner in ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor"):
            logging.getLogger(owner).removeHandler(handler)
    assert take_report(report) == "ValueError: no memory"


def test_a_folder_that_is_gone_has_no_processes(tmp_path: Path) -> None:
    assert process_marks(tmp_path / "gone") == {}
    assert process_marks(Birth({}, tmp_path).folder) == {}
