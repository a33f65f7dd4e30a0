"""Bodies cut into chunks, events and requests as lines."""

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.chunk_layout import ChunkLayout
from headrace_models.errors import DigestMismatch, SourceDenied, SourceUnavailable
from headrace_models.fetch.events import (
    Completed,
    Failed,
    FetchEvent,
    GroupProgress,
    Indexed,
    Noted,
    Progress,
    Started,
    failure_of,
    from_json,
    to_json,
)
from headrace_models.fetch.patience import Patience
from headrace_models.fetch.patient_source import BytesBody
from headrace_models.fetch.request import FetchRequest
from headrace_models.fetch.skeleton import fetch_skeleton
from headrace_models.fetch.spool import spool_directory
from headrace_models.fetch.transfer import arriving
from headrace_models.sources.base import SourceFile
from headrace_models.store.locks import FileLock, Hold, try_lock
from headrace_models.trust import Trust
from tests.fakes.memory_source import MemorySource

DATA = bytes(range(200))
LAYOUT = ChunkLayout(200, [0, 10, 50, 51, 120], [-1, 0, 0, 1, 1])


class Dribble:
    """A body that gives few bytes at a time."""

    def __init__(self, begin: int, end: int, step: int) -> None:
        self.begin, self.end = begin, end
        self._body = BytesBody(DATA[begin:end], begin)
        self._step = step

    def read(self, max_bytes: int) -> bytes:
        return self._body.read(min(max_bytes, self._step))


@given(st.integers(1, 200), st.sets(st.integers(0, 4)))
def test_every_wanted_chunk_arrives_whole_however_the_bytes_come(step: int, wanted: set[int]) -> None:
    arrived = {
        chunk.number: bytes(chunk.data)
        for chunk in arriving(
            Dribble(0, 200, step), LAYOUT, is_wanted=lambda number: number in wanted, on_bytes=lambda _n: None
        )
    }
    assert arrived == {number: DATA[slice(*LAYOUT.range_of(number))] for number in wanted}


def test_nothing_is_read_behind_the_last_wanted_chunk() -> None:
    counted: list[int] = []
    list(arriving(Dribble(0, 200, 7), LAYOUT, is_wanted=lambda number: number == 1, on_bytes=counted.append))
    assert sum(counted) == 50


def test_a_range_brings_the_chunks_in_it() -> None:
    arrived = [
        chunk.number
        for chunk in arriving(Dribble(50, 200, 64), LAYOUT, is_wanted=lambda _n: True, on_bytes=lambda _n: None)
    ]
    assert arrived == [2, 3, 4]


def test_a_body_that_ends_early_is_unavailable_and_what_came_before_is_kept() -> None:
    body = BytesBody(DATA[:60], 0)
    body.end = 200
    arrived: list[int] = []
    with pytest.raises(SourceUnavailable, match="60 bytes early"):
        arrived.extend(
            chunk.number for chunk in arriving(body, LAYOUT, is_wanted=lambda _n: True, on_bytes=lambda _n: None)
        )
    assert arrived == [0, 1, 2]


@pytest.mark.parametrize(
    "event",
    [
        Started("hf://a/b", 7),
        Noted("again"),
        Indexed("b-123", "r", Trust.FILE, 10),
        Progress(1, 10, 1, 2.5, None, (GroupProgress("embedding", 1, 4),)),
        Completed("b-123", Trust.CHUNK, 10, 1.5),
        Failed("SourceDenied", "no"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_survives_its_line(event: FetchEvent) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event


def test_a_failure_names_its_class_and_its_line() -> None:
    assert failure_of(DigestMismatch("wrong")) == Failed("DigestMismatch", "wrong")


def test_a_request_survives_its_line() -> None:
    request = FetchRequest(
        "hf://a/b", Path("/c"), max_bytes=5, require_trust=Trust.FILE, insecure_hosts=("h:1",), groups=("head",)
    )
    assert FetchRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize("line", ["5", '"Started"', "null", "true", "[]", '{"event": "Noted", "mess'])
def test_a_line_that_is_no_event_is_one_of_three_errors(line: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json(line)


def test_a_skeleton_that_fails_asks_for_no_more_of_its_files(tmp_path: Path) -> None:
    source = MemorySource({f"{number}.json": b"{}" for number in range(50)})
    source.max_connections = 1

    def refuse(_file: SourceFile, _begin: int, _end: int) -> None:
        time.sleep(0.01)
        raise SourceDenied("no")

    source.before_read = refuse
    with pytest.raises(SourceDenied):
        fetch_skeleton(source, source.files, tmp_path, Patience(1.0), threading.Event())
    assert len(source.requests) < 10


def test_a_spool_that_its_owner_removes_at_this_moment_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "spool" / "left"
    left.mkdir(parents=True)

    def removed_meanwhile(path: Path, hold: Hold) -> FileLock | None:
        if path.parent == left:
            left.rmdir()
        return try_lock(path, hold)

    monkeypatch.setattr("headrace_models.fetch.spool.try_lock", removed_meanwhile)
    with spool_directory(tmp_path) as folder:
        assert folder.is_dir()
