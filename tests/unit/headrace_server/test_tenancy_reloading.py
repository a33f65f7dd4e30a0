"""Files that are read again when they change."""

import logging
import os
from pathlib import Path

import pytest

from headrace_server.errors import UsageError
from headrace_server.tenancy.reloading import LOOK_SECONDS, Reloaded


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("first")
    return path


def text_of(path: Path) -> str:
    text = path.read_text() if path.exists() else "gone"
    if text == "bad":
        raise UsageError("the file is bad")
    return text


def reloaded(path: Path, clock: Clock) -> Reloaded[str]:
    return Reloaded([path], lambda: text_of(path), monotonic=clock)


def test_a_change_is_seen_at_the_next_look_and_not_before(path: Path, clock: Clock) -> None:
    value = reloaded(path, clock)
    path.write_text("second!")
    assert value.current() == "first"
    clock.now += LOOK_SECONDS
    assert value.current() == "second!"


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_is_read(path: Path, clock: Clock) -> None:
    value = reloaded(path, clock)
    other = path.with_name("other")
    other.write_text("other")
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    clock.now += LOOK_SECONDS
    assert value.current() == "other"


def test_without_a_change_nothing_is_read_again(path: Path, clock: Clock) -> None:
    reads: list[str] = []
    value = Reloaded([path], lambda: reads.append("read"), monotonic=clock)
    for _ in range(5):
        clock.now += LOOK_SECONDS
        value.current()
    assert reads == ["read"]


def test_a_bad_file_keeps_the_last_good_one_and_is_logged_once(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    value = reloaded(path, clock)
    path.write_text("bad")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.now += LOOK_SECONDS
            assert value.current() == "first"
    assert [record.message for record in caplog.records] == ["file_not_taken"]
    path.write_text("mended")
    clock.now += LOOK_SECONDS
    assert value.current() == "mended"


def test_a_file_may_come_and_go(path: Path, clock: Clock) -> None:
    value = reloaded(path, clock)
    path.unlink()
    clock.now += LOOK_SECONDS
    assert value.current() == "gone"
    path.write_text("back")
    clock.now += LOOK_SECONDS
    assert value.current() == "back"


def test_a_file_that_is_bad_from_the_start_is_an_error(path: Path, clock: Clock) -> None:
    path.write_text("bad")
    with pytest.raises(UsageError, match="bad"):
        reloaded(path, clock)
