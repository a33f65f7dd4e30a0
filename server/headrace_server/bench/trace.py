"""Reads a trace of real requests: when each came, and how long its prompt and its answer were.

The format is that of the Azure LLM inference traces (2023): a CSV file with the columns TIMESTAMP, ContextTokens and
GeneratedTokens, one request a line, in the order of time. Nothing but lengths is in such a file, so prompts are made
up.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from headrace_server.errors import UsageError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request: seconds after the first one of the file, tokens of its prompt, tokens of its answer."""

    at_seconds: float
    num_prompt_tokens: int
    num_tokens: int


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """All requests of a file.

    Raises:
        UsageError: it cannot be read, or a line of it is wrong; the message has its number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return tuple(parse_trace(lines, path.name))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"--trace {path}: {reason}") from error


def parse_trace(lines: Iterable[str], name: str) -> Iterator[TraceRow]:
    """The requests in the lines of a file called `name`.

    Raises:
        UsageError: see `read_trace`.
    """
    reader = csv.DictReader(lines)
    if missing := set(COLUMNS) - set(reader.fieldnames or ()):
        raise UsageError(f"--trace {name}: line 1: no column {', '.join(sorted(missing))}")
    began: datetime | None = None
    last = 0.0
    for fields in reader:
        try:
            at = _timestamp(fields["TIMESTAMP"])
            began = began or at
            row = TraceRow((at - began).total_seconds(), _count(fields, "ContextTokens"), _count(fields, COLUMNS[2]))
            if row.at_seconds < last:
                raise ValueError("TIMESTAMP is before that of the line above")
        except (ValueError, TypeError) as error:  # TypeError: a time with a zone among times without
            raise UsageError(f"--trace {name}: line {reader.line_num}: {error}") from error
        last = row.at_seconds
        yield row
    if began is None:
        raise UsageError(f"--trace {name}: no requests in it")


def _timestamp(text: str | None) -> datetime:
    try:
        return datetime.fromisoformat(text or "")
    except ValueError:
        raise ValueError(f"TIMESTAMP is not a time: {(text or '')[:40]!r}") from None


def _count(fields: dict[str, str | None], column: str) -> int:
    text = fields[column] or ""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{column} is not a number above 0: {text[:40]!r}")
    return int(text)
