"""What an HTTP answer says, believed only as far as it fits what was asked and what is known of the file. Pure.

A range is served by exactly that range (206) or by the whole file (200: the server ignores ranges); size, ETag and
Last-Modified are compared with what is expected, so that bytes of two versions are never mixed. Only strong ETags pin:
a weak one promises the same meaning, not the same bytes (RFC 9110, 8.8.1). Last-Modified has a resolution of a second
and pins less, but more than nothing.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from headrace_models.errors import (
    ModelError,
    ModelNotFound,
    SourceChanged,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
)
from headrace_models.sources.web_addresses import shown

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e\xa1-\xff]{1,1024}"')
_DATE = re.compile(r"[A-Z][ -~]{1,63}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_EMPTY_RANGE = re.compile(r"bytes \*/0")
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
_PAGES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and headers (case does not matter in their names) of what `url` answered."""

    url: str
    status: int
    headers: Mapping[str, str]


Examine = Callable[[Answer], None]


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a remote file. `etag` is a strong one, with its quotes; `last_modified` is compared as text."""

    size_bytes: int
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """What a server says about a file; `etag` only if it is strong. `is_page`: it is a web page, which no file of a
    model is, and which some servers give for whatever they do not have."""

    size_bytes: int
    etag: str | None
    last_modified: str | None
    is_page: bool


def describe_answer(answer: Answer) -> Description:
    """Read the answer to a request for the first byte of a file; raises ModelError."""
    headers = answer.headers
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    modified = headers.get("Last-Modified", "")
    return Description(
        _size(answer), strong_etag(answer), modified if _DATE.fullmatch(modified) else None, kind in _PAGES
    )


def check_answer(answer: Answer, begin: int, end: int, expected: Expected) -> tuple[int, int]:
    """Which bytes of the file the body of the answer to `bytes=begin-(end-1)` is.

    Raises SourceChanged, SourceUnusable and whatever the status means.
    """
    if answer.status not in {200, 206}:
        raise refusal(answer)
    _check_encoding(answer)
    _check_validators(answer, expected)
    length = _content_length(answer)
    if answer.status == 200:
        if length not in {None, expected.size_bytes}:
            raise _changed(answer, f"it has {length} bytes now, it had {expected.size_bytes}")
        return 0, expected.size_bytes
    if _content_range(answer, expected) != (begin, end) or length not in {None, end - begin}:
        raise SourceUnusable(f"{shown(answer.url)} gave other bytes than those that were asked for")
    return begin, end


def check_document(answer: Answer, max_bytes: int) -> None:
    """Raise ModelError unless the answer has a whole document, which it does not say to be larger than `max_bytes`."""
    if answer.status != 200:
        raise refusal(answer)
    _check_encoding(answer)
    if (_content_length(answer) or 0) > max_bytes:
        raise SourceUnusable(f"{shown(answer.url)} is larger than {max_bytes} bytes")


def refusal(answer: Answer) -> ModelError:
    """The error that the status of an unwanted answer means."""
    place, status = shown(answer.url), answer.status
    match status:
        case 401 | 407:
            return SourceDenied(f"{place} wants credentials, or other ones (it answered {status})")
        case 403:
            return SourceDenied(f"{place} refuses access (it answered 403)")
        case 404 | 410:
            return ModelNotFound(f"{place} is not there (it answered {status})")
        case 412 | 416:
            return _changed(answer, f"it answered {status}")
        case _ if status in {408, 425, 429} or status >= 500:
            wait = retry_after_seconds(answer.headers.get("Retry-After"), time.time())
            return SourceUnavailable(f"{place} cannot answer now (it answered {status})", retry_after_seconds=wait)
        case _:
            return SourceUnusable(f"{place} answered {status}, which makes no sense here")


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """Read Retry-After, in seconds or as a date (RFC 9110, 10.2.3); None if it says nothing. `now` is Unix time."""
    if not value:
        return None
    if _DIGITS.fullmatch(value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def strong_etag(answer: Answer) -> str | None:
    """The answer's ETag, with its quotes, if bytes can be pinned by it."""
    etag = answer.headers.get("ETag", "").strip()
    return etag if _STRONG_ETAG.fullmatch(etag) else None


def _size(answer: Answer) -> int:
    if answer.status == 416 and _EMPTY_RANGE.fullmatch(answer.headers.get("Content-Range", "")):
        return 0
    if answer.status not in {200, 206}:
        raise refusal(answer)
    _check_encoding(answer)
    if answer.status == 200:
        length = _content_length(answer)
        if length is None:
            raise SourceUnusable(f"{shown(answer.url)} does not say how large it is")
        return length
    begin, last, total = _range_numbers(answer)
    if (begin, last) != (0, 0) or total < 1:
        raise SourceUnusable(f"{shown(answer.url)} gave other bytes than those that were asked for")
    return total


def _check_encoding(answer: Answer) -> None:
    if answer.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise SourceUnusable(f"{shown(answer.url)} is compressed on the way, although it was asked not to be")


def _check_validators(answer: Answer, expected: Expected) -> None:
    if expected.etag is not None and strong_etag(answer) != expected.etag:
        raise _changed(answer, "its ETag is another one")
    if expected.last_modified is not None and answer.headers.get("Last-Modified") != expected.last_modified:
        raise _changed(answer, "it was modified at another time")


def _content_range(answer: Answer, expected: Expected) -> tuple[int, int]:
    begin, last, total = _range_numbers(answer)
    if total != expected.size_bytes:
        raise _changed(answer, f"it has {total} bytes now, it had {expected.size_bytes}")
    return begin, last + 1


def _range_numbers(answer: Answer) -> tuple[int, int, int]:
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if match is None:
        raise SourceUnusable(f"{shown(answer.url)} does not say which bytes it gave, and of how many")
    return int(match[1]), int(match[2]), int(match[3])


def _content_length(answer: Answer) -> int | None:
    text = answer.headers.get("Content-Length")
    if text is None:
        return None
    if _DIGITS.fullmatch(text.strip()) is None:
        raise SourceUnusable(f"{shown(answer.url)} has a Content-Length that is no number")
    return int(text)


def _changed(answer: Answer, how: str) -> SourceChanged:
    return SourceChanged(f"{shown(answer.url)} is not the file that it was: {how}")
