"""headrace_server.bench.trace: the Azure format, and its bad lines."""

from pathlib import Path

import pytest

from headrace_server.bench.trace import TraceRow, parse_trace, read_trace
from headrace_server.errors import UsageError

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens"
GOOD = "2023-11-16 18:15:46.6805900,374,44"


def test_times_are_seconds_after_the_first_request() -> None:
    lines = [HEAD, GOOD, "2023-11-16 18:15:50.9951690,396,109"]
    assert list(parse_trace(lines, "t")) == [TraceRow(0.0, 374, 44), TraceRow(4.314579, 396, 109)]


def test_columns_may_stand_in_any_order_and_there_may_be_more() -> None:
    lines = ["Extra,GeneratedTokens,TIMESTAMP,ContextTokens", "x,4,2023-11-16T00:00:00Z,3"]
    assert list(parse_trace(lines, "t")) == [TraceRow(0.0, 3, 4)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1: no column ContextTokens, GeneratedTokens, TIMESTAMP"),
        (["TIMESTAMP,ContextTokens"], "line 1: no column GeneratedTokens"),
        ([HEAD], "no requests"),
        ([HEAD, GOOD, "yesterday,1,1"], "line 3: TIMESTAMP is not a time: 'yesterday'"),
        ([HEAD, GOOD, GOOD.replace("374", "many")], "line 3: ContextTokens is not a number above 0: 'many'"),
        ([HEAD, GOOD.replace(",44", ",0")], "line 2: GeneratedTokens is not a number above 0: '0'"),
        ([HEAD, GOOD.replace(",44", "")], "line 2: GeneratedTokens is not a number"),
        ([HEAD, GOOD.replace(",44", ",-4")], "line 2: GeneratedTokens"),
        ([HEAD, GOOD, GOOD.replace("18:15:46", "18:15:45")], "line 3: TIMESTAMP is before that of the line above"),
        ([HEAD, GOOD, "2023-11-16T19:00:00Z,1,1"], "line 3: can't"),
    ],
)
def test_a_bad_line_is_named_by_its_number(lines: list[str], message: str) -> None:
    with pytest.raises(UsageError) as failure:
        list(parse_trace(lines, "azure.csv"))
    assert str(failure.value).startswith(f"--trace azure.csv: {message}")


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), (b"\xff\xfe\x00", "not UTF-8")])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "trace.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_trace(path)


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(f"\ufeff{HEAD}\r\n{GOOD}\r\n".encode())
    assert read_trace(path) == (TraceRow(0.0, 374, 44),)
