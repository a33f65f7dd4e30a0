"""Every error has its status, and every error answer is one small, valid envelope."""

import inspect
import json
from collections.abc import Iterator

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from headrace_server import errors
from headrace_server.api.error_mapping import (
    MAX_ENVELOPE_BYTES,
    OUTCOMES,
    envelope,
    error_document,
    error_response,
    http_error,
    outcome,
    validation_error,
)
from headrace_server.errors import (
    ClientGone,
    Contended,
    DeadlineExpired,
    DeadlineUnmeetable,
    Draining,
    EngineDied,
    EngineDown,
    EngineFault,
    HeadraceError,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    NoRoomForModel,
    NotAllowed,
    QuotaExceeded,
    RequestError,
    RequestQuarantined,
    RequestTooLarge,
    SlowRequest,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
    UnsupportedOperation,
    UsageError,
)

CONTRACT = {
    InvalidRequest: 400,
    UnsupportedOperation: 400,
    Unauthenticated: 401,
    NotAllowed: 403,
    ModelNotFound: 404,
    SlowRequest: 408,
    RequestTooLarge: 413,
    UnsupportedMediaType: 415,
    Contended: 429,
    DeadlineUnmeetable: 429,
    QuotaExceeded: 429,
    EngineFault: 500,
    RequestQuarantined: 500,
    Unavailable: 503,
    ModelLoading: 503,
    Draining: 503,
    NoRoomForModel: 503,
    EngineDown: 503,
    EngineDied: 503,
    DeadlineExpired: 504,
}


def subclasses(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("headrace_server."):
            yield child
            yield from subclasses(child)


REQUEST_ERRORS = sorted(set(subclasses(RequestError)), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", REQUEST_ERRORS)
def test_every_request_error_has_a_row_and_a_stable_code_of_its_own(kind: type[RequestError]) -> None:
    assert kind in OUTCOMES, f"{kind.__name__} has no row in OUTCOMES"
    is_told_apart = kind is not EngineDied  # which only this server needs to do
    assert ("default_code" in vars(kind)) is is_told_apart


def test_no_two_request_errors_share_a_code() -> None:
    codes = [vars(kind)["default_code"] for kind in REQUEST_ERRORS if "default_code" in vars(kind)]
    assert len(set(codes)) == len(codes)


def test_the_table_says_what_the_contract_says() -> None:
    assert {kind: row.status for kind, row in OUTCOMES.items()} == CONTRACT


def test_every_exception_of_the_errors_module_is_a_request_error_or_known_not_to_reach_a_client() -> None:
    inside = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__}
    others = {kind for kind in inside if not issubclass(kind, RequestError)}
    assert others == {HeadraceError, UsageError, ClientGone}


def test_a_class_without_a_row_takes_its_parents_and_the_root_is_a_server_error() -> None:
    special = type("Special", (ModelLoading,), {})
    assert outcome(special("x")) == OUTCOMES[ModelLoading]
    assert outcome(RequestError("x")).status == 500


HOSTILE = ['"' * 5000, "\\" * 5000, "\U0001f600" * 5000, "\x00" * 5000, "\ud800" * 5000, "é" * 1001, "x" * 10_000_000]


@pytest.mark.parametrize("message", HOSTILE, ids=lambda message: ascii(message[0]))
def test_an_envelope_stays_small_and_valid_whatever_the_message(message: str) -> None:
    body = error_document(InvalidRequest(message, param=message, code=message))
    assert len(body) <= MAX_ENVELOPE_BYTES
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@given(message=st.text(), param=st.none() | st.text(), code=st.none() | st.text(), times=st.integers(0, 2000))
@example(message="\x00", param="\x00", code="\x00", times=2000)
def test_an_envelope_is_always_valid_json_of_bounded_size(
    message: str, param: str | None, code: str | None, times: int
) -> None:
    body = envelope(message=message * times, type="t", param=param and param * times, code=code and code * times)
    assert len(body) <= MAX_ENVELOPE_BYTES
    error = json.loads(body)["error"]
    assert error["type"] == "t"
    assert (error["param"] is None) == (param is None)


def test_a_short_message_arrives_whole() -> None:
    message = 'say "no": \u00e9 \U0001f600\n'
    assert json.loads(error_document(ModelNotFound(message, param="model"))) == {
        "error": {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    }


def test_a_retry_time_is_given_in_whole_seconds_rounded_up_and_in_milliseconds() -> None:
    headers = error_response(Contended("later", retry_after_seconds=1.25)).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1250")
    assert "retry-after" not in error_response(Contended("later")).headers


def test_a_retry_time_is_never_too_early() -> None:
    headers = error_response(Contended("later", retry_after_seconds=0.0501)).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "51")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0ms"), (0.0171, "18ms"), (1.0, "1s"), (1.21, "1.3s"), (59.99, "60s"), (60.0, "1m0s"), (360.2, "6m1s")],
)
def test_a_quota_says_what_it_is_what_is_left_and_when_it_is_whole_again(seconds: float, shown: str) -> None:
    error = QuotaExceeded("no", limit_tokens=600, remaining_tokens=3, reset_seconds=seconds, retry_after_seconds=1.5)
    response = error_response(error)
    assert (response.status_code, response.headers["retry-after-ms"]) == (429, "1500")
    assert response.headers["x-ratelimit-limit-tokens"] == "600"
    assert response.headers["x-ratelimit-remaining-tokens"] == "3"
    assert response.headers["x-ratelimit-reset-tokens"] == shown


def test_a_quota_that_takes_hours_is_told_in_hours() -> None:
    error = QuotaExceeded("no", limit_tokens=1, remaining_tokens=0, reset_seconds=3661, retry_after_seconds=60)
    assert error_response(error).headers["x-ratelimit-reset-tokens"] == "1h1m1s"


def test_a_deadline_that_cannot_be_met_is_not_to_be_tried_again() -> None:
    headers = error_response(DeadlineUnmeetable("no", retry_after_seconds=5)).headers
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers


def test_a_missing_key_names_the_scheme_and_an_expired_deadline_says_not_to_retry() -> None:
    assert error_response(Unauthenticated("no")).headers["www-authenticate"] == "Bearer"
    assert error_response(DeadlineExpired("late", retry_after_seconds=5)).headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("status", "code"), [(404, "unknown_url"), (405, "method_not_allowed"), (418, "invalid_request")]
)
def test_the_frameworks_refusals_get_the_envelope_and_keep_their_headers(status: int, code: str) -> None:
    response = http_error(HTTPException(status, "no", headers={"allow": "GET"}))
    assert (response.status_code, response.headers["allow"]) == (status, "GET")
    assert json.loads(bytes(response.body))["error"]["code"] == code


def test_a_validation_error_names_the_field_and_keeps_the_input_to_itself() -> None:
    problem = {"type": "value_error", "loc": ("body", "messages", 0), "msg": "Value error, too odd", "input": "secret"}
    error = validation_error(RequestValidationError([problem]))
    assert (error.message, error.param) == ("messages.0: too odd", "messages.0")
