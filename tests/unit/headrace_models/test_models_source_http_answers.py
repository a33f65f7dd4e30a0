"""What an answer means, without a server: Retry-After, and that nothing but the asked bytes of the known file pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.errors import ModelError, SourceUnavailable
from headrace_models.sources.http_answers import Answer, Expected, check_answer, refusal, retry_after_seconds

NOW = 1_751_364_000.0  # Tue, 01 Jul 2025 10:00:00 GMT
NUMBERS = st.integers(0, 12)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Tue, 01 Jul 2025 10:01:30 GMT", 90.0),
        ("Tue, 01 Jul 2025 09:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1e9", None),
        ("Tue, 99 Jul 2025 10:01:30 GMT", None),
        ("9" * 5000, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


@given(st.text(max_size=40))
def test_any_retry_after_is_read_or_ignored(value: str) -> None:
    seconds = retry_after_seconds(value, NOW)
    assert seconds is None or seconds >= 0


@given(begin=NUMBERS, last=NUMBERS, total=NUMBERS, length=st.one_of(st.none(), NUMBERS))
def test_only_the_asked_bytes_of_a_file_of_the_known_size_pass(
    begin: int, last: int, total: int, length: int | None
) -> None:
    headers = {"Content-Range": f"bytes {begin}-{last}/{total}"}
    if length is not None:
        headers["Content-Length"] = str(length)
    right = (begin, last, total) == (3, 7, 10) and length in {None, 5}
    try:
        assert check_answer(Answer("https://a.example/", 206, headers), 3, 8, Expected(10)) == (3, 8)
    except ModelError:
        assert not right
    else:
        assert right


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_for_now_has_no_time_unless_it_is_said(status: int) -> None:
    error = refusal(Answer("https://a.example/x?secret", status, {}))
    assert isinstance(error, SourceUnavailable)
    assert error.retry_after_seconds is None
    assert "secret" not in str(error)
