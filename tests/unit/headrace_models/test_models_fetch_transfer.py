"""Bodies cut into chunks, events and requests as lines."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.chunk_layout import ChunkLayout
from headrace_models.errors import DigestMismatch, SourceUnavailable
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
from headrace_models.fetch.patient_source import BytesBody
from headrace_models.fetch.request import FetchRequest
from headrace_models.fetch.transfer import arriving
from headrace_models.trust import Trust

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
