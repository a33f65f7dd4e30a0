"""How many threads are at work, whatever becomes of their work."""

import threading

import pytest

from headrace_server.cli.busy_threads import BusyThreads


def test_a_thread_is_busy_while_its_work_goes_on() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        may_end.wait()
        return "done"

    with BusyThreads() as threads:
        assert threads.num_busy == 0
        future = threads.submit(work)
        begun.wait()
        assert threads.num_busy == 1
        may_end.set()
        assert future.result() == "done"
    assert threads.num_busy == 0


def test_work_that_fails_has_ended_too() -> None:
    with BusyThreads() as threads, pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result()
    assert threads.num_busy == 0


def test_arguments_are_passed_on() -> None:
    with BusyThreads() as threads:
        assert threads.submit(max, 1, 2, key=lambda number: -number).result() == 1
