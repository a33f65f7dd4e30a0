"""Answers that hold a file or a part of one: Range, If-Range and If-Match by RFC 9110.

Several ranges in one request are answered with the whole file, which the RFC allows.
"""

import re
from email.utils import formatdate

from loadtests.origin.messages import Answer, FilePart, Headers, Request, plain
from loadtests.origin.models import ServedFile

_RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))")


class Unsatisfiable(Exception):
    """A range that begins behind the end of the file."""


def requested_part(header: str, size_bytes: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None: no range, or none that is understood. Raises Unsatisfiable."""
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        begin, end = max(0, size_bytes - int(suffix)), size_bytes
    else:
        begin, end = int(first), min(int(last) + 1 if last else size_bytes, size_bytes)
        if last and int(last) < int(first):
            return None
    if begin >= end:
        raise Unsatisfiable
    return begin, end


def file_answer(file: ServedFile, request: Request, *, etag: str | None = None, headers: Headers = ()) -> Answer:
    """The file, or the part that is asked for; `etag`: what the protocol calls it, quoted, if not by its own."""
    tag = etag or file.etag
    common = (
        ("ETag", tag),
        ("Accept-Ranges", "bytes"),
        ("Last-Modified", formatdate(file.modified, usegmt=True)),
        ("Content-Type", "application/octet-stream"),
        *headers,
    )
    if request.header("if-match") not in ("", "*", tag):
        return plain(412, "the file is another one", (("ETag", tag),))
    try:
        part = requested_part(_range_of(request, tag), file.size_bytes)
    except Unsatisfiable:
        return plain(416, headers=(("Content-Range", f"bytes */{file.size_bytes}"),))
    if part is None:
        return Answer(200, common, FilePart(file.location, 0, file.size_bytes))
    begin, end = part
    where = f"bytes {begin}-{end - 1}/{file.size_bytes}"
    return Answer(206, (*common, ("Content-Range", where)), FilePart(file.location, begin, end))


def _range_of(request: Request, tag: str) -> str:
    """The Range header, empty where If-Range says that another file was meant."""
    return request.header("range") if request.header("if-range") in ("", tag) else ""
