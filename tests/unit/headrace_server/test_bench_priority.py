"""The client goes before what it measures, and only it."""

import os
import subprocess
import sys

import pytest

from headrace_server.bench.priority import has_priority, priority


def test_priority_is_given_back_and_not_passed_on() -> None:
    with priority() as is_given:
        if not is_given:
            pytest.skip("this user may not have real-time priority")
        assert has_priority()
        child = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"], capture_output=True, check=True
        )
    assert int(child.stdout) == os.SCHED_OTHER
    assert not has_priority()


def test_without_permission_the_block_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with priority() as is_given:
        assert not is_given
        assert not has_priority()
