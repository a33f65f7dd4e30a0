"""Those that were sent away and told when to come back."""

from headrace_server.scheduling.retry_line import LONGEST_SECONDS, SHORTEST_SECONDS, RetryLine


def test_who_comes_at_its_time_is_expected_once() -> None:
    line = RetryLine()
    assert line.tell(5.0, 100.0) == 5.0
    assert not line.is_expected(104.0)
    assert line.is_expected(105.0)
    assert not line.is_expected(105.0)


def test_who_comes_a_little_late_is_still_expected() -> None:
    line = RetryLine()
    line.tell(50.0, 100.0)
    assert line.is_expected(156.0)


def test_a_time_that_nobody_came_for_is_forgotten() -> None:
    line = RetryLine()
    line.tell(5.0, 100.0)
    assert not line.is_expected(110.0)
    assert len(line) == 0


def test_what_is_told_is_neither_at_once_nor_longer_than_clients_wait() -> None:
    line = RetryLine()
    assert line.tell(-3.0, 0.0) == SHORTEST_SECONDS
    assert line.tell(1e6, 0.0) == LONGEST_SECONDS
    assert LONGEST_SECONDS * 1.1 < 120
    assert len(line) == 1


def test_each_time_is_one_persons() -> None:
    line = RetryLine()
    for seconds in (1.0, 2.0, 3.0):
        line.tell(seconds, 0.0)
    assert [line.is_expected(2.0) for _ in range(3)] == [True, True, False]
