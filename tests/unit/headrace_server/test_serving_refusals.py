"""What a client is told that is not served, and when it may come back."""

import random

import pytest

from headrace_server.api.error_mapping import error_response
from headrace_server.domain import ModelId
from headrace_server.errors import Contended, RequestError
from headrace_server.queueing import Refusal, RefusalReason
from headrace_server.serving.refusals import MAX_RETRY_SECONDS, Refusals

MODEL = ModelId("mill")


def told(reason: RefusalReason, seconds: float | None = 5.0, *, seed: int = 1) -> RequestError:
    return Refusals(random.Random(seed)).error(Refusal(reason, seconds), MODEL)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (RefusalReason.QUEUE_FULL, 429),
        (RefusalReason.TENANT_QUEUE_FULL, 429),
        (RefusalReason.WAIT_TOO_LONG, 429),
        (RefusalReason.DEADLINE_UNMEETABLE, 429),
        (RefusalReason.DEADLINE_EXPIRED, 504),
    ],
)
def test_every_reason_is_the_code_of_its_error(reason: RefusalReason, status: int) -> None:
    error = told(reason)
    assert (error.code, error_response(error).status_code) == (reason.value, status)
    assert MODEL in error.message


@pytest.mark.parametrize("reason", [RefusalReason.DEADLINE_UNMEETABLE, RefusalReason.DEADLINE_EXPIRED])
def test_what_is_in_vain_is_not_to_be_tried_again(reason: RefusalReason) -> None:
    headers = error_response(told(reason)).headers
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers


@pytest.mark.parametrize(("seconds", "spread"), [(2.0, 0.2), (10.0, 0.5)])
def test_hints_are_spread_a_little_and_never_early(seconds: float, spread: float) -> None:
    hints = [told(RefusalReason.QUEUE_FULL, seconds, seed=seed).retry_after_seconds or 0.0 for seed in range(200)]
    assert min(hints) >= seconds
    assert max(hints) <= seconds + spread + 0.001
    assert max(hints) - min(hints) > 0.8 * spread


def test_a_hint_stays_where_clients_still_come_back() -> None:
    for seed in range(50):
        headers = error_response(told(RefusalReason.WAIT_TOO_LONG, 119.0, seed=seed)).headers
        assert int(headers["retry-after"]) <= MAX_RETRY_SECONDS
        assert 119_000 <= int(headers["retry-after-ms"]) <= 120_000


def test_where_nothing_is_known_a_client_is_to_come_back_soon() -> None:
    error = told(RefusalReason.QUEUE_FULL, None)
    assert isinstance(error, Contended)
    assert 1000 <= int(error_response(error).headers["retry-after-ms"]) <= 1100
